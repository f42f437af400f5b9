"""Small CLIPs of known weights: behind clip_reference.npz, and to compare with transformers where that is installed.

`python tests/clip_reference.py` writes tests/reference/clip_reference.npz again (needs the extra `parity`).
"""

import json
import math
import zlib

import numpy as np
from support.paths import REFERENCE

VOCABULARY = 520  # the 2 × 256 bytes of the tokenizer's alphabet, 6 merged pieces, begin, end
BEGIN, END = VOCABULARY - 2, VOCABULARY - 1
# Head sizes, a patch that does not divide the image and 3 and 2 layers: nothing is a multiple of something by chance.
CONFIGS = {
    'openai': {'hidden_act': 'quick_gelu', 'eos_token_id': 2},  # a wrong id, as in OpenAI's files: the largest is meant
    'laion': {'hidden_act': 'gelu', 'eos_token_id': END},
}


def clip_config(kind: str) -> dict:
    """A `config.json` of a tiny CLIP."""
    ours = CONFIGS[kind]
    activation = {'hidden_act': ours['hidden_act']}
    text = {
        'vocab_size': VOCABULARY,
        'hidden_size': 32,
        'intermediate_size': 72,
        'num_hidden_layers': 3,
        'num_attention_heads': 4,
        'max_position_embeddings': 77,
        'bos_token_id': BEGIN,
        'eos_token_id': ours['eos_token_id'],
        'pad_token_id': 1,
    }
    vision = {
        'hidden_size': 48,
        'intermediate_size': 80,
        'num_hidden_layers': 2,
        'num_attention_heads': 3,
        'image_size': 30,
        'patch_size': 7,
    }
    return {
        'model_type': 'clip',
        'text_config': text | activation,
        'vision_config': vision | activation,
        'projection_dim': 24,
    }


def clip_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor that Hugging Face calls `name`: one draw of a generator seeded by the name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith('.position_ids'):
        return np.arange(shape[-1]).reshape(shape)
    values = rng.standard_normal(shape)
    if 'norm' in name and name.endswith('weight'):
        values = 1 + 0.2 * values
    elif 'embedding' in name and 'patch' not in name:
        values = 0.5 * values
    else:
        values = values * (0.1 if len(shape) < 2 else math.prod(shape[1:]) ** -0.5)
    return np.asarray(values, np.float32)


def clip_model(config: dict):
    """transformers' CLIPModel with these weights, and its state dict as numpy arrays."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    with torch.device('meta'):
        model = CLIPModel(CLIPConfig(**{k: v for k, v in config.items() if k != 'model_type'}))
    state = {name: clip_tensor(name, tuple(t.shape)) for name, t in model.state_dict().items()}
    model = model.to_empty(device='cpu').eval()
    for module in model.modules():  # not in the state dict, so empty
        if hasattr(module, 'position_ids'):
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
    model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=True)
    return model, state


def token_ids(seed: int = 0, longest: int = 77) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and mask, int64 [7, longest]: lengths next to the compiled ones, padded with the end token."""
    rng = np.random.default_rng(seed)
    lengths = [min(length, longest) for length in (2, 3, 16, 17, 32, 64, 77)]
    ids = np.full((len(lengths), longest), END)
    mask = np.zeros((len(lengths), longest), np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = [BEGIN, *rng.integers(0, BEGIN, length - 2), END]
        mask[row, :length] = 1
    return ids, mask


def images() -> list[np.ndarray]:
    """uint8 [H, W, 3] of three sizes, of which the middle is cut out.

    None is resized: versions of Pillow differ in that, and test_clip_parity.py compares it with transformers'.
    """
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((30, 30), (45, 30), (30, 61))]


def _write() -> None:
    import torch
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    arrays = {}
    ids, mask = token_ids()
    processor = CLIPImageProcessorPil(size={'shortest_edge': 30}, crop_size={'height': 30, 'width': 30})
    for kind in CONFIGS:
        model, state = clip_model(clip_config(kind))
        with torch.no_grad():
            output = model(
                input_ids=torch.from_numpy(ids),
                attention_mask=torch.from_numpy(mask),
                pixel_values=processor(images(), return_tensors='pt')['pixel_values'],
            )
        arrays[f'{kind}_text'] = output.text_model_output.pooler_output.numpy()
        arrays[f'{kind}_image'] = output.vision_model_output.pooler_output.numpy()
        arrays[f'{kind}_names'] = list(state)
        arrays[f'{kind}_shapes'] = [json.dumps(value.shape) for value in state.values()]
    np.savez_compressed(REFERENCE / 'clip_reference.npz', **arrays)


if __name__ == '__main__':
    _write()
