"""Operations that multiply nothing, or each element a few times at most: a count without them is exact enough."""

from typing import Any

import torch


def is_linear(operation: str) -> bool:
    """Whether the work of an operation such as ``aten::gelu`` grows with its elements alone: it hides no product.

    Our choice: what moves, compares, pools or resizes, and elementwise arithmetic.
    """
    namespace, _, name = operation.partition("::")
    if namespace == "aten" and name.rstrip("_") in _LINEAR:
        return True
    packet = getattr(getattr(torch.ops, namespace), name, None)
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []
    return any(_is_elementwise(overload) or _is_view(overload) for overload in overloads)


def _is_elementwise(overload: Any) -> bool:
    tags = {torch.Tag.pointwise, getattr(torch.Tag, "reduction", torch.Tag.pointwise)}  # torch 2.11 lacks the second
    return not tags.isdisjoint(overload.tags)


def _is_view(overload: Any) -> bool:
    """Whether all that it returns is a part of its input, as it was."""
    returns = overload._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


# What torch neither tags as elementwise nor declares as a view. In-place variants go by the name without underscore.
_MOVE = """
    _pack_padded_sequence _pad_packed_sequence arange as_strided_scatter block_diag broadcast_tensors cartesian_prod
    channel_shuffle col2im column_stack concat concatenate constant_pad_nd diag diag_embed diagonal_scatter dstack
    embedding empty_like expand_as eye fill flip fliplr flipud gather hstack im2col index_add index_copy index_fill
    index_put index_select lift_fresh linspace masked_scatter masked_select meshgrid native_channel_shuffle new_ones
    one_hot ones_like pad pad_sequence pixel_shuffle pixel_unshuffle rand randn randperm reflection_pad1d
    reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d
    reshape_as roll rot90 scalar_tensor scatter scatter_add scatter_reduce select_scatter slice_scatter stack take
    take_along_dim tile to_dense to_sparse tril tril_indices triu triu_indices type_as unfold unsafe_chunk
    unsafe_split vstack
"""
_POOL = """
    adaptive_avg_pool1d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d
    avg_pool2d avg_pool3d fractional_max_pool2d fractional_max_pool3d max_pool1d max_pool1d_with_indices max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d
"""
_RESIZE = """
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d affine_grid_generator upsample_bicubic2d upsample_linear1d
    upsample_nearest1d upsample_nearest3d upsample_trilinear3d
"""
_REDUCE_OR_COMPARE = """
    _unique2 all amax amin aminmax any argmax argmin argsort bincount bucketize count_nonzero cummax cummin cumprod
    cumsum diff isin kthvalue logcumsumexp logsumexp max mean median min mode msort norm prod quantile searchsorted
    sort std std_mean sum topk trace unique_consecutive unique_dim var var_mean
"""
_ELEMENTWISE = """
    _weight_norm alpha_dropout cosine_similarity cross feature_alpha_dropout feature_dropout frobenius_norm glu
    hardswish kron linalg_cross linalg_norm linalg_vecdot linalg_vector_norm log_sigmoid log_softmax outer
    pairwise_distance prelu renorm rrelu_with_noise softmax
"""
_LINEAR = frozenset(" ".join((_MOVE, _POOL, _RESIZE, _REDUCE_OR_COMPARE, _ELEMENTWISE)).split())
