"""Our count of convolutions and matrix products beside torch's own, on a hundred architectures of timm.

python examples/benchmarks/compare_flops.py [--out FILE.json] [--readme FILE.md] [--only-table]

torch.utils.flop_counter counts what runs; we count what fvcore traces. Attention runs by its plain implementation,
since torch's counter does not know the CPU's fused one. The architectures are the smallest of their families (timm's
modules) and some more, with random weights. Takes two minutes on one core. --only-table makes the table from the JSON
as it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, model_entrypoint
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdcompress.flops import profile

sys.path.append(str(Path(__file__).parents[1] / "studies"))
from study import write_between

_NAMES = """
cait_xxs24_224 coat_tiny coatnet_pico_rw_224 convit_tiny convmixer_768_32 convnext_atto convnext_zepto_rms
cpubone_nano crossvit_tiny_240 cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121
dla46x_c dpn48b eca_botnext26ts_256 edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0
efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw eva02_tiny_patch14_224 fasternet_t0 fastvit_t8
focalnet_tiny_srf gcvit_xxtiny ghostnet_050 ghostnetv3_050 gmlp_ti16_224 halonet26t hardcorenas_b hgnetv2_b0
hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto inception_v3 lambda_resnet26t lcnetv2_small
legacy_seresnet18 legacy_xception levit_128s levit_conv_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256
mixer_s16_224 mobilenetv2_035 mobilenetv3_small_050 mobilenetv3_small_100 mobilenetv4_hybrid_medium mobileone_s0
mobileone_s1 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nf_regnet_b0 nf_resnet26 pit_ti_224 poolformer_s12
poolformerv2_s12 pvt_v2_b0 rdnet_tiny regnetx_002 regnety_002 repghostnet_050 repvgg_a0 repvit_m1 res2next50
resmlp_12_224 resnest14d resnet10t resnet18 resnetv2_18 rexnet_100 sam2_hiera_tiny sequencer2d_s shvit_s1 skresnet18
starnet_s050 swiftformer_xs swin_s3_tiny_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256
tiny_vit_5m_224 tnt_s_legacy_patch16_224 tnt_s_patch16_224 twins_svt_small visformer_tiny
vit_srelpos_small_patch16_224 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 xception41p
xcit_nano_12_p8_224
"""
ARCHITECTURES = _NAMES.split()
LARGEST = 224  # pixels, where the architecture takes other sizes than its own
SHOWN = 10


def torch_macs(network: nn.Module, size: tuple[int, ...]) -> int:
    """What torch's counter says of one image ``(C, H, W)``."""
    network.eval().requires_grad_(False)
    # oneDNN runs an LSTM as one operation, which the counter does not know.
    recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False) if recurrent else nullcontext(),
        FlopCounterMode(display=False) as counter,
    ):
        network(torch.zeros(1, *size))
    return counter.get_total_flops() // 2


def compare(name: str) -> dict[str, Any]:
    """Both counts for one architecture."""
    config = get_pretrained_cfg(name, allow_unregistered=False)
    size = config.input_size
    if not config.fixed_input_size:
        smallest = config.min_input_size or (0, 0, 0)
        size = (size[0], *(min(side, max(LARGEST, least)) for side, least in zip(size[1:], smallest[1:], strict=True)))
    network = timm.create_model(name)
    cost = profile(network, size)
    return {
        "architecture": name,
        "family": model_entrypoint(name).__module__.rpartition(".")[2],
        "input_size": list(size),
        "macs": cost.macs,
        "macs_by_operator": cost.macs_by_operator,
        "torch_macs": torch_macs(network, size),
        "missed": cost.missed,
    }


def difference(row: dict[str, Any]) -> float:
    """Our convolutions and matrix products above torch's count, in percent."""
    parts = row["macs_by_operator"]
    return 100 * ((parts["convolution"] + parts["matrix_product"]) / row["torch_macs"] - 1)


def left_out(row: dict[str, Any]) -> float:
    """Share of fvcore's MACs that torch's counter leaves out, in percent: normalization, pooling, resizing."""
    parts = row["macs_by_operator"]
    return 100 * (parts["normalization"] + parts["other"]) / row["macs"]


def table(results: dict[str, Any]) -> list[str]:
    """Markdown: the networks of which torch's counter leaves out most, then all in one sentence."""
    rows = results["rows"]
    families = len({row["family"] for row in rows})
    most = sorted(rows, key=left_out, reverse=True)[:SHOWN]
    return [
        "| architecture | side | MACs, fvcore | convolutions and products | torch | difference | left out by torch |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| `{row['architecture']}` | {row['input_size'][1]} | {row['macs'] / 1e6:.1f} M "
            f"| {(row['macs_by_operator']['convolution'] + row['macs_by_operator']['matrix_product']) / 1e6:.1f} M "
            f"| {row['torch_macs'] / 1e6:.1f} M | {difference(row):.2f} % | {left_out(row):.1f} % |"
            for row in most
        ),
        "",
        f"The {SHOWN} with the largest share of normalization and pooling, of {len(rows)} architectures of {families} "
        f"families. Over all of them, the largest difference is {max(abs(difference(row)) for row in rows):.2f} %, and "
        f"the median share of normalization and pooling {statistics.median(map(left_out, rows)):.1f} %. "
        f"timm {results['timm']}, torch {results['torch']}; made by `examples/benchmarks/compare_flops.py`.",
    ]


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """JSON with a line per architecture."""
    versions = {"timm": timm.__version__, "torch": torch.__version__}
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{json.dumps(versions)[:-1]}, "rows": [\n{lines}\n]}}\n')


def main() -> None:
    figures = Path(__file__).parents[1] / "results" / "flops.json"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=figures)
    parser.add_argument("--readme", type=Path, default=Path(__file__).with_name("README.md"))
    parser.add_argument("--only-table", action="store_true")
    options = parser.parse_args()
    if not options.only_table:
        rows = []
        for name in ARCHITECTURES:
            rows.append(compare(name))
            print(f"{name:40} {difference(rows[-1]):+.3f} % {' '.join(rows[-1]['missed'])}", flush=True)
        write(rows, options.out)
    write_between(options.readme, "flops", table(json.loads(options.out.read_text())))


if __name__ == "__main__":
    main()
