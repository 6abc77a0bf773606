"""The whole way from a trained model to a verified file, in one call.

``quantize`` puts together what the other rooms do one by one; it decides nothing that they could.
"""
