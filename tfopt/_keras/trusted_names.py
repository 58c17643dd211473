"""What a Keras file may name: exact pairs of module and class, and functions that compute.

Mathematics, shapes, and layers that hold weights. Left out is what runs code that the file brings (Lambda,
TorchModuleWrapper), reads other files (TFSMLayer, feature columns) or calls functions that it is given (Map, Scan).
"""

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

# Classes by the module that files give; `tf_keras` in front stands for the same.
_CLASSES = {
    "keras": """
        DTypePolicy FloatDTypePolicy Function Model Sequential
    """,
    "keras._legacy.layers": """
        AlphaDropout RandomHeight RandomWidth ThresholdedReLU
    """,
    "keras.constraints": """
        MaxNorm MinMaxNorm NonNeg RadialConstraint UnitNorm
    """,
    "keras.dtype_policies": """
        AWQDTypePolicy DTypePolicyMap GPTQDTypePolicy Int4DTypePolicy QuantizedDTypePolicy
        QuantizedFloat8DTypePolicy
    """,
    "keras.engine.functional": """
        Functional
    """,
    "keras.initializers": """
        Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal LecunUniform Ones Orthogonal
        RandomNormal RandomUniform STFT TruncatedNormal VarianceScaling Zeros he_normal he_uniform lecun_normal
        lecun_uniform
    """,
    "keras.layers": """
        Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
        AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add
        AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D AveragePooling2D
        AveragePooling3D BatchNormalization Bidirectional CategoryEncoding CenterCrop Concatenate
        ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D
        Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D Cropping2D Cropping3D CuDNNGRU CuDNNLSTM
        CutMix Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense Embedding
        Equalization Flatten GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D
        GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
        GroupNormalization GroupQueryAttention GroupedQueryAttention HashedCrossing Hashing Identity InputLayer
        IntegerLookup LSTM LSTMCell LayerNormalization LeakyReLU LocallyConnected1D LocallyConnected2D Masking
        MaxNumBoundingBoxes MaxPooling1D MaxPooling2D MaxPooling3D Maximum MelSpectrogram Minimum MixUp
        MultiHeadAttention Multiply Normalization PReLU Permute Pipeline RMSNormalization RNN RandAugment
        RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop
        RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHeight RandomHue
        RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness
        RandomShear RandomTranslation RandomWidth RandomZoom ReLU RepeatVector Rescaling Reshape Resizing
        ReversibleEmbedding STFTSpectrogram SeparableConv1D SeparableConv2D SimpleRNN SimpleRNNCell Softmax
        Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells
        StringLookup Subtract TextVectorization ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D
        UpSampling2D UpSampling3D Wrapper ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """,
    "keras.layers.experimental": """
        RandomFourierFeatures SyncBatchNormalization
    """,
    "keras.losses": """
        BinaryCrossentropy BinaryFocalCrossentropy CTC CategoricalCrossentropy CategoricalFocalCrossentropy
        CategoricalGeneralizedCrossEntropy CategoricalHinge Circle CosineSimilarity Dice Hinge Huber KLDivergence
        LogCosh MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogarithmicError Poisson
        SparseCategoricalCrossentropy SquaredHinge Tversky
    """,
    "keras.metrics": """
        AUC Accuracy BinaryAccuracy BinaryCrossentropy BinaryIoU CategoricalAccuracy CategoricalCrossentropy
        CategoricalHinge ConcordanceCorrelation CosineSimilarity F1Score FBetaScore FalseNegatives FalsePositives
        Hinge IoU KLDivergence LogCoshError Mean MeanAbsoluteError MeanAbsolutePercentageError MeanIoU
        MeanMetricWrapper MeanRelativeError MeanSquaredError MeanSquaredLogarithmicError MeanTensor OneHotIoU
        OneHotMeanIoU PearsonCorrelation Poisson Precision PrecisionAtRecall R2Score Recall RecallAtPrecision
        RootMeanSquaredError SensitivityAtSpecificity SparseCategoricalAccuracy SparseCategoricalCrossentropy
        SparseTopKCategoricalAccuracy SpecificityAtSensitivity SquaredHinge Sum TopKCategoricalAccuracy
        TrueNegatives TruePositives
    """,
    "keras.mixed_precision": """
        Policy
    """,
    "keras.optimizers": """
        Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lamb Lion LossScaleOptimizer MultiOptimizer Muon Nadam
        RMSprop SGD ScheduleFreeAdamW
    """,
    "keras.optimizers.legacy": """
        Adadelta Adagrad Adam Adamax Ftrl Nadam RMSprop SGD
    """,
    "keras.optimizers.schedules": """
        CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay PiecewiseConstantDecay PolynomialDecay
    """,
    "keras.quantizers": """
        AWQConfig AbsMaxQuantizer Float8QuantizationConfig GPTQConfig Int4QuantizationConfig Int8QuantizationConfig
        QuantizationConfig
    """,
    "keras.random": """
        SeedGenerator
    """,
    "keras.regularizers": """
        L1 L1L2 L2 OrthogonalRegularizer
    """,
    "keras.src.activations.activations": """
        Mish ReLU
    """,
    "keras.src.applications.convnext": """
        LayerScale StochasticDepth
    """,
    "keras.src.applications.inception_resnet_v2": """
        CustomScaleLayer
    """,
    "keras.src.engine.base_layer": """
        AddLoss AddMetric
    """,
    "keras.src.engine.functional": """
        Functional
    """,
    "keras.src.layers.rnn.cell_wrappers": """
        DropoutWrapper ResidualWrapper
    """,
    "keras.src.models.functional": """
        Functional
    """,
    "keras.src.ops.core": """
        Cast ConvertToTensor SaturateCast Scatter ScatterUpdate Slice SliceUpdate StopGradient Unstack
    """,
    "keras.src.ops.einops": """
        Rearrange
    """,
    "keras.src.ops.image": """
        AffineTransform CropImages ElasticTransform ExtractPatches GaussianBlur HSVToRGB MapCoordinates PadImages
        PerspectiveTransform RGBToGrayscale RGBToHSV Resize SSIM ScaleAndTranslate SobelEdges
    """,
    "keras.src.ops.linalg": """
        Cholesky CholeskyInverse Det Eig Eigh Inv Lstsq LuFactor MatrixRank Norm Pinv Qr SVD Solve SolveTriangular
    """,
    "keras.src.ops.math": """
        CDist Erf Erfc Erfinv ExtractSequences FFT FFT2 IFFT2 IRFFT ISTFT InTopK Logdet Logsumexp RFFT Rsqrt STFT
        SegmentMax SegmentMin SegmentProd SegmentSum TopK ViewAsComplex ViewAsReal
    """,
    "keras.src.ops.nn": """
        AdaptiveAveragePool AdaptiveMaxPool AveragePool BatchNorm BinaryCrossentropy CTCDecode CTCLoss
        CategoricalCrossentropy Celu Conv ConvTranspose DepthToSpace DepthwiseConv DotProductAttention Elu Fold Gelu
        Glu HardShrink HardSigmoid HardSilu HardTanh LayerNorm LeakyRelu LogSigmoid LogSoftmax MaxPool Moments
        MultiHot Normalize OneHot PSNR Polar RMSNorm Relu Relu6 Selu SeparableConv Sigmoid Silu SoftShrink Softmax
        Softplus Softsign SpaceToDepth SparseCategoricalCrossentropy SparsePlus SparseSigmoid Sparsemax Squareplus
        TanhShrink Threshold Unfold
    """,
    "keras.src.ops.numpy": """
        Abs Absolute Add All AllClose Amax Amin Angle Any Append Arange Arccos Arccosh Arcsin Arcsinh Arctan Arctan2
        Arctanh Argmax Argmin Argpartition Argsort Array ArraySplit Average Bincount BitwiseAnd BitwiseInvert
        BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor BroadcastTo Cbrt Ceil Clip Concatenate
        Conj Conjugate Copy Corrcoef Correlate Cos Cosh CountNonzero Cross Cumprod Cumsum Deg2rad Diag Diagflat
        Diagonal Diff Digitize Divide DivideNoNan Dot Dsplit Dstack Einsum EmptyLike Equal Exp Exp2 ExpandDims Expm1
        Fabs Flip Fliplr Flipud Floor FloorDivide Fmax Fmin Fmod Full FullLike Gcd Geomspace GetItem Greater
        GreaterEqual Heaviside Histogram Hsplit Hstack Hypot I0 Imag Inner IsIn Isclose Isfinite Isinf Isnan
        Isneginf Isposinf Isreal Kron Lcm Ldexp LeftShift Less LessEqual Linspace Log Log10 Log1p Log2 Logaddexp
        Logaddexp2 LogicalAnd LogicalNot LogicalOr LogicalXor Logspace Matmul Max Maximum Mean Median Meshgrid Min
        Minimum Mod Moveaxis Multiply NanToNum Nanargmax Nanargmin Nancumprod Nancumsum Nanmax Nanmean Nanmedian
        Nanmin Nanpercentile Nanprod Nanquantile Nanstd Nansum Nanvar Ndim Negative Nextafter Nonzero NotEqual
        OnesLike Outer Pad Percentile Power Prod Ptp Quantile Rad2deg Ravel Real Reciprocal Repeat Reshape
        RightShift Roll Rot90 Round SearchSorted Select Sign Signbit Sin Sinc Sinh Size Slogdet Sort Split Sqrt
        Square Squeeze Stack Std Subtract Sum Swapaxes Take TakeAlongAxis Tan Tanh Tensordot Tile Trace Transpose
        Trapezoid Tril Triu TrueDivide Trunc Unique UnravelIndex Vander Var Vdot View Vsplit Vstack Where ZerosLike
    """,
    # Initializers of TensorFlow itself, which applications of tf_keras use.
    "tensorflow.python.ops.init_ops_v2": """
        Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal LecunUniform Ones Orthogonal
        RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros
    """,
}

TRUSTED_CLASSES = frozenset((module, name) for module, names in _CLASSES.items() for name in names.split())
# Files of the first formats give no module.
NAMES_WITHOUT_MODULE = frozenset(
    name for module, name in TRUSTED_CLASSES if not module.startswith("keras.src.ops.")
)

# Activations, losses and metrics that are functions.
_KERAS_FUNCTIONS = """
    KLD MAE MAPE MSE MSLE binary_accuracy binary_crossentropy binary_focal_crossentropy categorical_accuracy
    categorical_crossentropy categorical_focal_crossentropy categorical_generalized_cross_entropy categorical_hinge
    celu circle concordance_correlation cosine_similarity ctc dice elu exponential gelu glu hard_shrink hard_sigmoid
    hard_silu hard_swish hard_tanh hinge huber kl_divergence kld kullback_leibler_divergence leaky_relu linear
    log_cosh log_sigmoid log_softmax logcosh mae mape mean_absolute_error mean_absolute_percentage_error
    mean_squared_error mean_squared_logarithmic_error mish mse msle pearson_correlation poisson relu relu6 selu
    sigmoid silu soft_shrink softmax softplus softsign sparse_categorical_accuracy sparse_categorical_crossentropy
    sparse_plus sparse_sigmoid sparse_top_k_categorical_accuracy sparsemax squared_hinge squareplus swish tanh
    tanh_shrink threshold top_k_categorical_accuracy tversky
"""
KERAS_FUNCTIONS = frozenset(_KERAS_FUNCTIONS.split())
# Where files say that such a function stands.
MODULES_OF_FUNCTIONS = frozenset({
    "builtins", "keras.activations", "keras.losses", "keras.metrics", "keras.ops",
    "keras.src.activations.activations", "keras.src.losses.losses",
})  # fmt: skip
