"""What ExLlama reads: GPTQ, EXL2, EXL3 folders and their shapes; models, engines and prepare
use it.
"""
