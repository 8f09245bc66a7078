"""The checkpoint folder's files of model and tokenizer, in the layout of Hugging Face.

The records beside them are `records`', the card `model_card`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.corpus.dataset import END_OF_TEXT

# As the text-generation pipeline takes them; lengths count the prompt, prefix included. top_k is left at
# transformers' default, 50.
SAMPLING_DEFAULTS = {
    "do_sample": True,
    "min_length": 10,
    "max_length": 160,
    "temperature": 1.0,
    "top_p": 0.95,
}


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights (safetensors), tokenizer and both places where sampling defaults are looked for."""
    from transformers import GenerationConfig

    sampling = SAMPLING_DEFAULTS | {"max_length": min(160, model.config.n_positions)}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    task_specific_params = {"text-generation": {**sampling, "prefix": END_OF_TEXT}}
    model.config.task_specific_params = task_specific_params
    model.config.use_cache = True  # some Trainers turn it off while they train
    model.generation_config = GenerationConfig(**sampling, **ids)
    model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # safetensors writes them for the owner alone
        weights.chmod((folder / "config.json").stat().st_mode)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt

    # Some versions of transformers leave out of their files what they hold for a default or for outdated.
    _update_json(folder / "config.json", {"task_specific_params": task_specific_params})
    _update_json(folder / "generation_config.json", {**sampling, **ids})


def _update_json(path: Path, values: dict[str, Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
