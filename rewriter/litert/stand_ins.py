"""Operators that the converter cannot make as int8, and those that hold their place meanwhile.

The converter leaves ELU and PRELU in float, between a DEQUANTIZE and a QUANTIZE, and drops one of
two fake-quant operators in a row, so that no int8 to int8 QUANTIZE comes out. LiteRT has int8
kernels for all three. They are emitted as another operator with the same tensors, which
:func:`restore` turns into the real one in the file.
"""

from __future__ import annotations

from typing import Any

from rewriter.errors import ExportError

#: The kind that is in the file before :func:`restore`, by the kind that is meant.
STAND_INS = {"QUANTIZE": "LEAKY_RELU", "ELU": "LEAKY_RELU", "PRELU": "MUL"}

#: The slopes of the LEAKY_RELU operators that stand in: no layer's own, and not each other's.
SLOPES = {"QUANTIZE": 0.7182818, "ELU": 0.7182828}

_OPTIONS = {"QUANTIZE": "QuantizeOptions"}


def restore(model: Any, operator: Any, kind: str, schema: Any) -> None:
    """Turns a stand-in of an unpacked flatbuffer into the operator it stands for.

    Args:
      model: ``ModelT``; an operator code may be added to it.
      operator: ``OperatorT``, the stand-in.
      kind: what it stands for, a key of ``STAND_INS``.
      schema: the module that the object classes come from.

    Raises:
      ExportError: ``operator`` is not the stand-in of ``kind``.
    """
    found = model.operatorCodes[operator.opcodeIndex].builtinCode
    if found != getattr(schema.BuiltinOperator, STAND_INS[kind]):
        raise ExportError(
            f"{kind} should have been converted to {STAND_INS[kind]} for the time being. "
            f"Received: builtin operator {found}."
        )
    code = getattr(schema.BuiltinOperator, kind)
    codes = [entry.builtinCode for entry in model.operatorCodes]
    if code not in codes:
        entry = schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, code, 1
        model.operatorCodes.append(entry)
        codes.append(code)
    operator.opcodeIndex = codes.index(code)
    name = _OPTIONS.get(kind)
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, name or "NONE")
    operator.builtinOptions = getattr(schema, f"{name}T")() if name else None
