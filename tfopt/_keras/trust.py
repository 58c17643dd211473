"""What a Keras file may name: code of Keras itself that computes, and of TensorFlow what computes.

A file names what builds it. tf_keras imports whatever module a configuration gives and calls whatever TensorFlow
function a `TFOpLambda` gives while it builds the graph, so a file could write or delete files when it is looked at.
"""

import builtins
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from tfopt.errors import ModelFileError

# Functions that an operation layer of tf_keras may call, by the module of TensorFlow that they stand in.
_FUNCTIONS = {
    "": """
        abs acos acosh add add_n argmax argmin argsort as_string asin asinh assert_equal assert_greater assert_less
        assert_rank atan atan2 atanh batch_to_space bitcast boolean_mask broadcast_dynamic_shape broadcast_to cast
        clip_by_global_norm clip_by_norm clip_by_value complex concat constant conv conv2d_backprop_filter_v2
        conv2d_backprop_input_v2 convert_to_tensor cos cosh cumsum divide dynamic_partition dynamic_stitch
        edit_distance eig eigvals einsum ensure_shape equal exp expand_dims extract_volume_patches eye fftnd fill
        fingerprint floor gather gather_nd greater greater_equal histogram_fixed_width histogram_fixed_width_bins
        identity identity_n ifftnd irfftnd less less_equal linspace logical_and logical_not logical_or matmul
        matrix_square_root maximum meshgrid minimum multiply negative norm not_equal one_hot ones ones_like pad
        parallel_stack pow range rank realdiv reduce_all reduce_any reduce_logsumexp reduce_max reduce_mean
        reduce_min reduce_prod reduce_sum repeat required_space_to_batch_paddings reshape reverse reverse_sequence
        rfftnd roll round saturate_cast scalar_mul scatter_nd searchsorted sequence_mask shape shape_n sigmoid sign
        sin sinh size slice sort space_to_batch space_to_batch_nd split sqrt square squeeze stack stop_gradient
        strided_slice subtract tan tanh tensor_scatter_nd_add tensor_scatter_nd_max tensor_scatter_nd_min
        tensor_scatter_nd_sub tensor_scatter_nd_update tensordot tile transpose truediv truncatediv truncatemod
        unique unique_with_counts unravel_index unstack where zeros zeros_like
    """,
    "math": """
        abs accumulate_n acos acosh add add_n angle approx_max_k approx_min_k argmax argmin asin asinh atan atan2
        atanh bessel_i0 bessel_i0e bessel_i1 bessel_i1e betainc bincount ceil confusion_matrix conj cos cosh
        count_nonzero cumprod cumsum cumulative_logsumexp digamma divide divide_no_nan equal erf erfc erfcinv erfinv
        exp expm1 floor floordiv floormod greater greater_equal igamma igammac imag in_top_k invert_permutation
        is_finite is_inf is_nan is_non_decreasing is_strictly_increasing l2_normalize lbeta less less_equal lgamma
        log log1p log_sigmoid log_softmax logical_and logical_not logical_or logical_xor maximum minimum mod
        multiply multiply_no_nan ndtri negative nextafter not_equal polygamma polyval pow real reciprocal
        reciprocal_no_nan reduce_all reduce_any reduce_euclidean_norm reduce_logsumexp reduce_max reduce_mean
        reduce_min reduce_prod reduce_std reduce_sum reduce_variance rint round rsqrt scalar_mul segment_max
        segment_mean segment_min segment_prod segment_sum sigmoid sign sin sinh softmax softplus softsign sqrt
        square squared_difference subtract tan tanh top_k truediv unsorted_segment_max unsorted_segment_mean
        unsorted_segment_min unsorted_segment_prod unsorted_segment_sqrt_n unsorted_segment_sum xdivy xlog1py xlogy
        zero_fraction zeta
    """,
    "linalg": """
        adjoint band_part banded_triangular_solve cholesky cholesky_solve cross det diag diag_part eig eigh
        eigh_tridiagonal eigvals eigvalsh einsum expm eye global_norm inv l2_normalize logdet logm lstsq lu
        lu_matrix_inverse lu_reconstruct lu_solve matmul matrix_rank matrix_transpose matvec norm normalize pinv qr
        set_diag slogdet solve sqrtm svd tensor_diag tensor_diag_part tensordot trace triangular_solve
        tridiagonal_matmul tridiagonal_solve
    """,
    "nn": """
        approx_max_k approx_min_k atrous_conv2d atrous_conv2d_transpose avg_pool avg_pool1d avg_pool2d avg_pool3d
        batch_norm_with_global_normalization batch_normalization bias_add collapse_repeated compute_average_loss
        conv1d conv1d_transpose conv2d conv2d_transpose conv3d conv3d_transpose conv_transpose convolution crelu
        ctc_beam_search_decoder ctc_greedy_decoder ctc_loss ctc_unique_labels depth_to_space depthwise_conv2d
        depthwise_conv2d_backprop_filter depthwise_conv2d_backprop_input dilation2d dropout elu embedding_lookup
        embedding_lookup_sparse erosion2d fractional_avg_pool fractional_max_pool gelu in_top_k isotonic_regression
        l2_loss l2_normalize leaky_relu local_response_normalization log_poisson_loss log_softmax lrn max_pool
        max_pool1d max_pool2d max_pool3d max_pool_with_argmax moments normalize_moments pool relu relu6
        safe_embedding_lookup_sparse scale_regularization_loss selu separable_conv2d sigmoid
        sigmoid_cross_entropy_with_logits silu softmax softmax_cross_entropy_with_logits softplus softsign
        space_to_batch space_to_depth sparse_softmax_cross_entropy_with_logits sufficient_statistics swish tanh
        top_k weighted_cross_entropy_with_logits weighted_moments with_space_to_batch zero_fraction
    """,
    "signal": """
        dct fft fft2d fft3d fftnd fftshift frame hamming_window hann_window idct ifft ifft2d ifft3d ifftnd ifftshift
        inverse_mdct inverse_stft inverse_stft_window_fn irfft irfft2d irfft3d irfftnd kaiser_bessel_derived_window
        kaiser_window linear_to_mel_weight_matrix mdct mfccs_from_log_mel_spectrograms overlap_and_add rfft rfft2d
        rfft3d rfftnd stft vorbis_window
    """,
    "bitwise": """
        bitwise_and bitwise_or bitwise_xor invert left_shift right_shift
    """,
    "image": """
        adjust_brightness adjust_contrast adjust_gamma adjust_hue adjust_jpeg_quality adjust_saturation central_crop
        combined_non_max_suppression convert_image_dtype crop_and_resize crop_to_bounding_box draw_bounding_boxes
        extract_glimpse extract_patches flip_left_right flip_up_down generate_bounding_box_proposals
        grayscale_to_rgb hsv_to_rgb image_gradients non_max_suppression non_max_suppression_overlaps
        non_max_suppression_padded non_max_suppression_with_scores pad_to_bounding_box per_image_standardization
        psnr resize resize_with_crop_or_pad resize_with_pad rgb_to_grayscale rgb_to_hsv rgb_to_yiq rgb_to_yuv rot90
        sobel_edges ssim ssim_multiscale stateless_sample_distorted_bounding_box total_variation transpose
        yiq_to_rgb yuv_to_rgb
    """,
    "strings": """
        as_string bytes_split join length lower reduce_join regex_full_match regex_replace split strip substr
        to_hash_bucket_fast to_hash_bucket_strong to_number unicode_decode unicode_encode unicode_split upper
    """,
    "random": """
        normal uniform truncated_normal stateless_normal stateless_uniform stateless_truncated_normal categorical
        shuffle
    """,
    "dtypes": """
        cast complex saturate_cast
    """,
    "sparse": """
        from_dense to_dense sparse_dense_matmul reorder concat softmax reduce_sum reduce_max
    """,
    "ragged": """
        boolean_mask constant range row_splits_to_segment_ids segment_ids_to_row_splits stack
    """,
    "quantization": """
        fake_quant_with_min_max_args fake_quant_with_min_max_vars fake_quant_with_min_max_vars_per_channel
        quantize_and_dequantize_v2
    """,
    "__operators__": """
        add eq getitem ne ragged_getitem
    """,
    "keras.activations": """
        elu exponential gelu hard_sigmoid linear mish relu selu sigmoid softmax softplus softsign swish tanh
    """,
    "keras.backend": """
        abs all any argmax argmin batch_dot batch_flatten bias_add cast clip concatenate cos cumprod cumsum dot
        elu equal exp expand_dims flatten gather greater greater_equal hard_sigmoid l2_normalize less less_equal
        log max maximum mean min minimum not_equal one_hot permute_dimensions pow prod relu repeat
        repeat_elements reshape resize_images reverse round sigmoid sign sin softmax softplus softsign sqrt
        square squeeze stack std sum tanh tile transpose var
    """,
}

TRUSTED_FUNCTIONS = frozenset(
    f"{module}.{name}".lstrip(".") for module, names in _FUNCTIONS.items() for name in names.split()
)
# Attributes of ragged and sparse tensors, which tf_keras turns into layers as well.
_ATTRIBUTES = frozenset({
    "bounding_shape", "dense_shape", "dtype", "flat_values", "indices", "nested_row_splits", "nrows", "row_lengths",
    "row_limits", "row_splits", "row_starts", "shape", "to_sparse", "to_tensor", "value_rowids", "values",
    "with_flat_values", "with_values",
})  # fmt: skip
_TENSOR_CLASSES = frozenset({"RaggedTensor", "sparse.SparseTensor", "SparseTensor"})
# Modules of Keras and KerasHub whose classes and functions compute; not those that read files or fetch them.
_MODULES = frozenset({
    "activations", "applications", "constraints", "dtype_policies", "initializers", "layers", "losses", "metrics",
    "mixed_precision", "models", "ops", "optimizers", "quantizers", "random", "regularizers", "samplers",
    "tokenizers",
})  # fmt: skip
_PACKAGES = frozenset({"keras", "tf_keras", "keras_hub"})
_INNER = _MODULES | {"engine", "backend", "legacy"}  # below `src`, where classes without a public name stand


def refuse_code(config: Any, path: Path) -> None:
    """Refuses a configuration that names code which would run while the model is built.

    Args:
        config: a model's configuration, of either generation and any format.
        path: the file it comes from, for the message.

    Raises:
        ModelFileError: a Lambda layer, a function or module that is not on the lists; it is named.
    """
    for node in _nodes(config):
        reason = _reason_to_refuse(node)
        if reason is not None:
            raise ModelFileError(
                f"{path} holds {reason}, which is code that would run while loading: rebuild the model without it, "
                "or load it yourself and pass the model object"
            )


def _reason_to_refuse(node: dict[str, Any]) -> str | None:
    kind, settings = node.get("class_name"), node.get("config")
    config = settings if isinstance(settings, dict) else {}
    if kind in ("Lambda", "__lambda__"):
        return f"a Lambda layer ({config.get('name') or 'unnamed'})"
    if kind in ("TFOpLambda", "SlicingOpLambda"):
        function = str(config.get("function"))
        trusted = function.removeprefix("compat.v1.") in TRUSTED_FUNCTIONS
        return None if trusted else f"a layer that calls tf.{function}"
    if kind == "TensorFlowOpLayer":
        return f"a layer of a raw TensorFlow operation ({config.get('name') or 'unnamed'})"
    if kind == "ClassMethod":
        name = f"{config.get('cls_symbol')}.{config.get('method_name')}"
        trusted = config.get("cls_symbol") in _TENSOR_CLASSES and ".from_" in name
        return None if trusted else f"a layer that calls tf.{name}"
    if kind in ("InstanceMethod", "InstanceProperty"):
        attribute = config.get("attr_name")
        return None if attribute in _ATTRIBUTES else f"a layer that takes the attribute {attribute!r}"
    return _untrusted_module(node)


def _untrusted_module(node: dict[str, Any]) -> str | None:
    module, kind = node.get("module"), node.get("class_name")
    if module is None or kind is None or _is_registered(node):
        return None
    if module == "builtins":  # how both generations name functions of their own lists
        name = node.get("config") if kind == "function" else kind
        return f"the function {name!r}" if hasattr(builtins, str(name)) else None
    parts = str(module).split(".")
    if kind == "__typespec__" and parts[0] == "tensorflow":
        return None
    if parts[0] not in _PACKAGES:
        return None if _is_loaded_class(module, kind) else f"{kind} of the module {module}"
    is_inner = parts[1:2] == ["src"]
    inner = parts[2:] if is_inner else parts[1:]
    known = _INNER if is_inner else _MODULES
    return None if not inner or inner[0] in known else f"{kind} of the module {module}"


def _is_registered(node: dict[str, Any]) -> bool:
    """Whether the running program has registered what is named, as custom objects of either generation."""
    names = {str(node.get("registered_name")), str(node.get("config")) if node["class_name"] == "function" else ""}
    loaded = [sys.modules[package] for package in ("keras", "tf_keras") if package in sys.modules]
    return any(not names.isdisjoint(keras.saving.get_custom_objects()) for keras in loaded)


def _is_loaded_class(module: str, name: str) -> bool:
    """Whether it is a Keras class of a module that the running program itself has imported."""
    found = vars(sys.modules.get(module, builtins)).get(name)
    return isinstance(found, type) and any(c.__module__.partition(".")[0] in _PACKAGES for c in found.__mro__)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = value.values()
    elif not isinstance(value, list):
        return
    for item in cast(Iterable[Any], value):
        yield from _nodes(item)
