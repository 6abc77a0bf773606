"""Models of public packages, built without weights: what :mod:`benchmarks.zoo` goes through.

One row of :data:`MODELS` a model: the package, the Kerases that it builds with, and how. The
smallest variant of each family; the side is the smallest that the family takes.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

SIDE, CLASSES = 96, 10
KERASES = ("tf_keras", "keras")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of a package.

    Attributes:
      package: its name on PyPI.
      name: of the model.
      kerases: that the package builds it with.
      build: called with the module of a Keras.
    """

    package: str
    name: str
    kerases: tuple[str, ...]
    build: Callable[[Any], Any]


# kimm: Keras 3.
_KIMM = (
    "ConvMixer736D32 ConvNeXtAtto DenseNet121 EfficientNetB0 EfficientNetLiteB0 EfficientNetV2B0 "
    "GhostNetV2W100 GhostNetV3W050 GhostNetW050 HGNetTiny HGNetV2B0 InceptionNeXtTiny InceptionV3 "
    "LCNet035 MobileNetV2W050 MobileNetV3W050Small MobileNetV3W100LargeMinimal MobileOneS0 "
    "MobileViTXXS MobileViTV2W050 RegNetX002 RegNetY002 RepVGGA0 ResNet18 ResNet50 TinyNetE "
    "VisionTransformerTiny32 Xception"
)
_KIMM_SIDES = {"InceptionV3": 107, "MobileViTXXS": 128, "MobileViTV2W050": 128}


def _kimm(name: str) -> Entry:
    side = _KIMM_SIDES.get(name, SIDE)

    def build(keras: Any) -> Any:
        package = importlib.import_module("kimm")
        shape = [side, side, 3]
        return getattr(package.models, name)(input_shape=shape, weights=None, classes=CLASSES)

    return Entry("kimm", name, ("keras",), build)


# kecam: tf_keras. By module.
_KECAM: Mapping[str, str] = {
    "beit": "BeitBasePatch16 ViTTinyPatch16 EVA02TinyPatch14",
    "botnet": "BotNet26T BotNextECA26T",
    "caformer": "CAFormerS18 ConvFormerS18",
    "cmt": "CMTTiny",
    "coat": "CoaTLiteTiny",
    "coatnet": "CoAtNet0",
    "convnext": "ConvNeXtTiny ConvNeXtV2Atto",
    "cotnet": "CotNet50",
    "cspnext": "CSPNeXtTiny",
    "davit": "DaViT_T",
    "edgenext": "EdgeNeXt_XX_Small",
    "efficientdet": "EfficientDetLite0 EfficientDetD0",
    "efficientformer": "EfficientFormerL1 EfficientFormerV2S0",
    "efficientnet": "EfficientNetV1Lite0 EfficientNetV2B0 EfficientNetEdgeTPUSmall",
    "efficientvit": "EfficientViT_M0 EfficientViT_B0",
    "fasternet": "FasterNetT0",
    "fastervit": "FasterViT0",
    "fastvit": "FastViT_T8",
    "gcvit": "GCViT_XXTiny",
    "ghostnet": "GhostNet_050 GhostNetV2_100",
    "gpvit": "GPViT_L1",
    "halonet": "HaloNetH0 HaloNextECA26T",
    "hiera": "HieraTiny",
    "hornet": "HorNetTiny",
    "iformer": "IFormerSmall",
    "inceptionnext": "InceptionNeXtTiny",
    "levit": "LeViT128S",
    "maxvit": "MaxViT_Tiny",
    "mlp_family": "MLPMixerS32 ResMLP12 GMLPTiny16 WaveMLP_T",
    "mobilenetv3_family": "FBNetV3B LCNet050 MobileNetV3Small050 TinyNetE",
    "mobilevit": "MobileViT_XXS MobileViT_V2_050",
    "moganet": "MogaNetXtiny",
    "nat": "NAT_Mini",
    "nfnets": "ECA_NFNetL0",
    "pvt": "PVT_V2B0",
    "repvit": "RepViT_M09",
    "resnest": "ResNest50",
    "resnet_family": "ResNeXt50 ResNet50D ResNet51Q RegNetY040 RegNetZB16 RegNetZC16_EVO",
    "swin_transformer_v2": "SwinTransformerV2Tiny_window8",
    "tinyvit": "TinyViT_5M",
    "uniformer": "UniformerSmall32",
    "vanillanet": "VanillaNet5",
    "volo": "VOLO_d1",
    "yolor": "YOLOR_CSP",
    "yolov7": "YOLOV7_Tiny",
    "yolov8": "YOLOV8_N YOLOV8_N_CLS YOLO_NAS_S",
    "yolox": "YOLOXNano",
}
_KECAM_SIDES = {
    "swin_transformer_v2": 256,
    "maxvit": 224,
    "coatnet": 224,
    "davit": 224,
    "fastervit": 224,
    "gcvit": 224,
    "hiera": 224,
    "nat": 224,
    "tinyvit": 224,
    "beit": 112,
    "efficientdet": 128,
    "yolor": 128,
    "yolov7": 128,
    "yolov8": 128,
    "yolox": 128,
    "halonet": 128,
    "gpvit": 128,
    "volo": 128,
    "mobilevit": 128,
}


def _kecam(family: str, name: str) -> Entry:
    side = _KECAM_SIDES.get(family, SIDE)

    def build(keras: Any) -> Any:
        module = importlib.import_module(f"keras_cv_attention_models.{family}")
        shape = (side, side, 3)
        return getattr(module, name)(input_shape=shape, pretrained=None, num_classes=CLASSES)

    return Entry("keras-cv-attention-models", name, ("tf_keras",), build)


# keras-unet-collection: whichever Keras TensorFlow shows.
_FILTERS = [8, 16, 32, 64]
_UNETS: Mapping[str, Mapping[str, Any]] = {
    "unet_2d": {"batch_norm": True},
    "unet_plus_2d": {"batch_norm": True, "deep_supervision": True},
    "r2_unet_2d": {"batch_norm": True},
    "att_unet_2d": {"batch_norm": True},
    "unet_3plus_2d": {"batch_norm": True},
    "resunet_a_2d": {"batch_norm": True},
    "u2net_2d": {"batch_norm": True},
}
_UNET_FILTERS = {"resunet_a_2d": "filter_num", "u2net_2d": "filter_num_down"}


def _unet(name: str) -> Entry:
    def build(keras: Any) -> Any:
        models = importlib.import_module("keras_unet_collection.models")
        options: dict[str, Any] = dict(_UNETS[name])
        if name == "resunet_a_2d":
            options["dilation_num"] = [1, 3]
        if name == "unet_3plus_2d":
            filters: Any = {"filter_num_down": _FILTERS}
        else:
            filters = {_UNET_FILTERS.get(name, "filter_num"): _FILTERS}
        return getattr(models, name)((64, 64, 3), n_labels=2, **filters, **options)

    kerases = ("tf_keras",) if name == "resunet_a_2d" else KERASES  # it asks tensors for get_shape
    return Entry("keras-unet-collection", name, kerases, build)


# keras-tcn: whichever Keras TensorFlow shows.
_TCNS: Mapping[str, Mapping[str, Any]] = {
    "TCN": {"use_batch_norm": True},
    "TCN, sequences": {"use_batch_norm": True, "return_sequences": True},
    "TCN, not causal": {"use_batch_norm": True, "padding": "same"},
    "TCN, layer norm": {"use_layer_norm": True},
}


def _tcn(name: str) -> Entry:
    def build(keras: Any) -> Any:
        tcn = importlib.import_module("tcn")
        inputs = keras.Input((64, 6))
        features = tcn.TCN(nb_filters=16, dilations=(1, 2, 4), **_TCNS[name])(inputs)
        return keras.Model(inputs, keras.layers.Dense(CLASSES)(features))

    return Entry("keras-tcn", name, KERASES, build)


# keras-hub: Keras 3; its backbones, small.
_RESNET = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [7],
    "stackwise_num_filters": [64, 64, 128],
    "stackwise_num_blocks": [2, 2, 2],
    "stackwise_num_strides": [1, 2, 2],
    "block_type": "basic_block",
}
_HGNET = {
    "depths": [1, 1, 1, 1],
    "embedding_size": 16,
    "hidden_sizes": [32, 64, 128, 256],
    "stem_channels": [3, 8, 16],
    "hidden_act": "relu",
    "use_learnable_affine_block": True,
    "stackwise_stage_filters": [
        [16, 8, 32, 1, 3, 3],
        [32, 16, 64, 1, 3, 3],
        [64, 16, 128, 1, 3, 5],
        [128, 32, 256, 1, 3, 5],
    ],
    "apply_downsample": [False, True, True, True],
    "use_lightweight_conv_block": [False, False, True, True],
}
_MOBILE5 = {
    "stackwise_block_types": [["er"], ["uir", "uir"]],
    "stackwise_num_blocks": [1, 2],
    "stackwise_num_filters": [[24], [48, 48]],
    "stackwise_strides": [[2], [2, 1]],
    "stackwise_act_layers": [["relu"], ["relu", "relu"]],
    "stackwise_exp_ratios": [[4.0], [6.0, 6.0]],
    "stackwise_se_ratios": [[0.0], [0.0, 0.0]],
    "stackwise_dw_kernel_sizes": [[0], [5, 5]],
    "stackwise_dw_start_kernel_sizes": [[0], [0, 0]],
    "stackwise_dw_end_kernel_sizes": [[0], [0, 0]],
    "stackwise_exp_kernel_sizes": [[3], [0, 0]],
    "stackwise_pw_kernel_sizes": [[1], [0, 0]],
    "stackwise_num_heads": [[0], [0, 0]],
    "stackwise_key_dims": [[0], [0, 0]],
    "stackwise_value_dims": [[0], [0, 0]],
    "stackwise_kv_strides": [[0], [0, 0]],
    "stackwise_use_cpe": [[False], [False, False]],
    "use_msfa": False,
}
_DFINE = {
    "decoder_in_channels": [16, 16],
    "encoder_hidden_dim": 16,
    "num_denoising": 0,
    "num_labels": 4,
    "hidden_dim": 16,
    "learn_initial_query": False,
    "num_queries": 10,
    "anchor_image_size": (64, 64),
    "feat_strides": [16, 32],
    "num_feature_levels": 2,
    "encoder_in_channels": [128, 256],
    "encode_proj_layers": [1],
    "num_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_encoder_layers": 1,
    "hidden_expansion": 0.34,
    "depth_multiplier": 0.5,
    "eval_idx": -1,
    "num_decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "decoder_n_points": [2, 2],
    "lqe_hidden_dim": 8,
    "num_lqe_layers": 2,
    "out_features": ["stage3", "stage4"],
    "seed": 0,
}
_HUB: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ResNet": ("ResNetBackbone", _RESNET),
    "ResNet, bottlenecks": ("ResNetBackbone", {**_RESNET, "block_type": "bottleneck_block"}),
    "ResNet, pre-activation": ("ResNetBackbone", {**_RESNET, "use_pre_activation": True}),
    "ResNet, D": (
        "ResNetBackbone",
        {
            **_RESNET,
            "input_conv_filters": [32, 32, 64],
            "input_conv_kernel_sizes": [3, 3, 3],
            "block_type": "basic_block_vd",
        },
    ),
    "DenseNet": ("DenseNetBackbone", {"stackwise_num_repeats": [2, 2, 2], "growth_rate": 8}),
    "HGNetV2": ("HGNetV2Backbone", _HGNET),
    "HGNetV2, plain": ("HGNetV2Backbone", {**_HGNET, "use_learnable_affine_block": False}),
    "MobileNet": (
        "MobileNetBackbone",
        {
            "stackwise_expansion": [[16, 24], [24, 48]],
            "stackwise_num_blocks": [2, 2],
            "stackwise_num_filters": [[16, 16], [24, 24]],
            "stackwise_kernel_size": [[3, 3], [5, 5]],
            "stackwise_num_strides": [[2, 1], [2, 1]],
            "stackwise_se_ratio": [[None, None], [0.25, 0.25]],
            "stackwise_activation": [["relu", "relu"], ["hard_swish", "hard_swish"]],
            "stackwise_padding": [[1, 1], [2, 2]],
            "output_num_filters": 64,
            "depthwise_filters": 8,
            "depthwise_stride": 2,
            "depthwise_residual": False,
            "last_layer_filter": 48,
            "squeeze_and_excite": 0.5,
        },
    ),
    "MobileNetV5": ("MobileNetV5Backbone", {**_MOBILE5, "norm_layer": "batch_norm"}),
    "MobileNetV5, RMS": ("MobileNetV5Backbone", _MOBILE5),
    "D-FINE": ("DFineBackbone", _DFINE),
    "MiT": (
        "MiTBackbone",
        {
            "layerwise_depths": [1, 1],
            "num_layers": 2,
            "layerwise_num_heads": [1, 2],
            "layerwise_sr_ratios": [4, 1],
            "max_drop_path_rate": 0.1,
            "layerwise_patch_sizes": [7, 3],
            "layerwise_strides": [4, 2],
            "hidden_dims": [16, 32],
        },
    ),
}


def _hub(name: str) -> Entry:
    def build(keras: Any) -> Any:
        package = importlib.import_module("keras_hub")
        kind, options = _HUB[name]
        shape = {"image_shape": (64, 64, 3)}
        if kind == "DFineBackbone":
            inner = {**_HGNET, "out_features": ["stage3", "stage4"], **shape}
            options = {**options, "backbone": package.models.HGNetV2Backbone(**inner)}
        return getattr(package.models, kind)(**shape, **options)

    return Entry("keras-hub", name, ("keras",), build)


MODELS: tuple[Entry, ...] = (
    *map(_tcn, _TCNS),
    *map(_hub, _HUB),
    *map(_unet, _UNETS),
    *map(_kimm, _KIMM.split()),
    *(_kecam(family, name) for family, names in _KECAM.items() for name in names.split()),
)
