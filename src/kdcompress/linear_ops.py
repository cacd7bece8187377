"""Operations that multiply nothing, or each element a few times at most: a count without them is exact enough."""

from typing import Any

import torch


def is_linear(operation: str) -> bool:
    """Whether the work of an operation such as ``aten::gelu`` grows with its elements alone: it hides no product.

    Our choice: what moves, compares, pools or resizes, and elementwise arithmetic.
    """
    namespace, _, name = operation.partition("::")
    if namespace == "aten" and (name.removesuffix("_") in _LINEAR or name.startswith("special_")):
        return True
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []
    return any(_is_elementwise(overload) or _is_view(overload) or _asks(overload) for overload in overloads)


def _is_elementwise(overload: Any) -> bool:
    tags = {torch.Tag.pointwise, getattr(torch.Tag, "reduction", torch.Tag.pointwise)}  # torch 2.11 lacks the second
    return not tags.isdisjoint(overload.tags)


def _is_view(overload: Any) -> bool:
    """Whether all that it returns is a part of its input, as it was."""
    returns = overload._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _asks(overload: Any) -> bool:
    """Whether it returns no tensor, such as a number of elements."""
    returns = overload._schema.returns
    return bool(returns) and all("Tensor" not in str(r.type) for r in returns)


# What torch neither tags as elementwise nor declares as a view; in-place variants without their underscore.
_MOVE = """
    _pack_padded_sequence _pad_packed_sequence arange argwhere as_strided as_strided_scatter atleast_1d atleast_2d
    atleast_3d bernoulli block_diag broadcast_tensors cartesian_prod channel_shuffle col2im column_stack
    combinations concat concatenate constant_pad_nd detach diag diag_embed diagflat diagonal_scatter dropout dstack
    embedding embedding_bag empty_like empty_strided expand_as exponential eye fill fill_diagonal flip fliplr flipud
    gather hstack im2col index_add index_copy index_fill index_put index_reduce index_select lift_fresh linspace
    logspace masked_scatter masked_select meshgrid narrow_copy native_channel_shuffle new_empty_strided new_ones
    nonzero_numpy nonzero_static normal one_hot ones_like pad pad_sequence pixel_shuffle pixel_unshuffle put rand
    rand_like randint randint_like randn randn_like random randperm reflection_pad1d reflection_pad2d
    reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d requires_grad
    reshape_as resize resize_as roll rot90 row_stack scalar_tensor scatter scatter_add scatter_reduce select_scatter
    set slice_scatter stack take take_along_dim tensor tile to_dense to_sparse tril tril_indices triu triu_indices
    type_as unfold uniform unsafe_chunk unsafe_split unsafe_split_with_sizes vstack zero
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
    cumsum diff greater greater_equal histc isclose isin isreal kthvalue less less_equal logcumsumexp logsumexp max
    mean median min mode msort nanmean nanmedian nanquantile norm not_equal prod quantile searchsorted sort std
    std_mean sum sum_to_size topk trace unique_consecutive unique_dim unique_dim_consecutive var var_mean
"""
_ELEMENTWISE = """
    _weight_norm absolute addr alpha_dropout arccos arccosh arcsin arcsinh arctan arctan2 arctanh complex
    cosine_similarity cross cumulative_trapezoid dist divide fake_quantize_per_channel_affine
    fake_quantize_per_tensor_affine feature_alpha_dropout feature_dropout fix floor_divide frobenius_norm ger glu
    gradient hardswish kron linalg_cross linalg_norm linalg_vecdot linalg_vector_norm log_sigmoid log_softmax
    multiply native_dropout negative outer pairwise_distance prelu quantize_per_channel quantize_per_tensor renorm
    rrelu_with_noise softmax subtract trapezoid trapz
"""
_LINEAR = frozenset(" ".join((_MOVE, _POOL, _RESIZE, _REDUCE_OR_COMPARE, _ELEMENTWISE)).split())
