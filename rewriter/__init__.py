"""Trained Keras models into quantization-aware, fine-tunable ones, and into integer files."""

from rewriter import layers
from rewriter.calibrate import calibrate
from rewriter.errors import RewriterError
from rewriter.export import ExportReport, export_tflite
from rewriter.fixed_point import Clip, FixedPoint, PowerOfTwo
from rewriter.fold import fold
from rewriter.load import load_model
from rewriter.phases import get_phase, set_phase
from rewriter.pipeline import BatchNormPipeline
from rewriter.pipeline_ops import register_op
from rewriter.plan import Plan, PlanEntry, plan
from rewriter.quantizers import PerChannelQuantizer, PerTensorQuantizer, register_quantizer
from rewriter.recipe import Recipe
from rewriter.reestimate import reestimate_batch_norm
from rewriter.rewrite import rewrite
from rewriter.schedule import QuantizationSchedule, freeze_batch_norm
from rewriter.verify import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "BatchNormPipeline",
    "Clip",
    "ExportReport",
    "FixedPoint",
    "PerChannelQuantizer",
    "PerTensorQuantizer",
    "Plan",
    "PlanEntry",
    "PowerOfTwo",
    "QuantizationSchedule",
    "Recipe",
    "RewriterError",
    "Verification",
    "calibrate",
    "export_tflite",
    "fold",
    "freeze_batch_norm",
    "get_phase",
    "layers",
    "load_model",
    "plan",
    "reestimate_batch_norm",
    "register_op",
    "register_quantizer",
    "rewrite",
    "set_phase",
    "verify",
]
