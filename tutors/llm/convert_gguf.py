"""Write a model that a GGUF file holds as bfloat16 safetensors: `python convert_gguf.py PACKAGES FILE FOLDER`.

It runs in the environment of vLLM, which has transformers; PACKAGES is a folder of packages that are missing there.
"""

import sys
from pathlib import Path

import torch


def main(packages: str, file: str, folder: str) -> None:
    """Convert the model and its tokenizer."""
    sys.path.append(packages)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(Path(file).parent), Path(file).name
    config = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, dtype=torch.bfloat16, quantization_config=config
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
