"""Trained Keras models into quantization-aware, fine-tunable ones, and those into integer files.

The public names are all here. To import this package is to register our layers with the Kerases of
this process, so that each of them loads a model that holds such layers.
"""

from rewriter import layers
from rewriter.checking.fold import fold
from rewriter.checking.targets import check
from rewriter.checking.verify import Verification, verify
from rewriter.errors import RewriterError, RewriterWarning
from rewriter.export import ExportReport, export_tflite
from rewriter.quantization.fixed_point import Clip, FixedPoint, PowerOfTwo
from rewriter.quantization.phases import get_phase, set_phase
from rewriter.quantization.pipeline import BatchNormPipeline
from rewriter.quantization.pipeline_ops import register_op
from rewriter.quantization.quantizer_names import register_quantizer
from rewriter.quantization.quantizers import PerChannelQuantizer, PerTensorQuantizer
from rewriter.reading.load import load_model
from rewriter.report.model_explorer import write_model_explorer
from rewriter.report.report import Report
from rewriter.report.tensorboard import write_tensorboard
from rewriter.report.write import write_report
from rewriter.rewriting.freezing import freeze
from rewriter.rewriting.layer_rules import LayerRule
from rewriter.rewriting.plan import Plan, PlanEntry, plan
from rewriter.rewriting.recipe import Recipe
from rewriter.rewriting.rewrite import rewrite
from rewriter.training.calibrate import calibrate
from rewriter.training.distillation import distillation_loss
from rewriter.training.reestimate import reestimate_batch_norm
from rewriter.training.schedule import QuantizationSchedule, freeze_batch_norm
from rewriter.training.trained import trained_layers
from rewriter.workflow.finetune import Finetuned, finetune
from rewriter.workflow.quantize import Quantized, quantize
from rewriter.workflow.sensitivity import sensitivity
from rewriter.workflow.sensitivity_report import Sensitivity

__version__ = "0.1.0"

__all__ = [
    "BatchNormPipeline",
    "Clip",
    "ExportReport",
    "Finetuned",
    "FixedPoint",
    "LayerRule",
    "PerChannelQuantizer",
    "PerTensorQuantizer",
    "Plan",
    "PlanEntry",
    "PowerOfTwo",
    "QuantizationSchedule",
    "Quantized",
    "Recipe",
    "Report",
    "RewriterError",
    "RewriterWarning",
    "Sensitivity",
    "Verification",
    "calibrate",
    "check",
    "distillation_loss",
    "export_tflite",
    "finetune",
    "fold",
    "freeze",
    "freeze_batch_norm",
    "get_phase",
    "layers",
    "load_model",
    "plan",
    "quantize",
    "reestimate_batch_norm",
    "register_op",
    "register_quantizer",
    "rewrite",
    "sensitivity",
    "set_phase",
    "trained_layers",
    "verify",
    "write_model_explorer",
    "write_report",
    "write_tensorboard",
]
