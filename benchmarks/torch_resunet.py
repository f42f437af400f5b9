"""The separator and its training step in plain PyTorch, at the original's shapes: what this project is timed against.

Written for `benchmarks/train_step.py` after the article and the tensors of `audiosep_jax/models/torch_names.py`, whose
names its state dict has: this project's weights load into it, and its output equals ours
(`train_step.py` prints the difference).
"""

import torch
import torch.nn.functional as F
from torch import nn

from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.layers import DOWNSAMPLING, TIME_DOWNSAMPLING
from audiosep_jax.models.torch_names import torch_tensors


class Block(nn.Module):
    """Two 3×3 convolutions, each after norm, shift and activation, around a shortcut."""

    def __init__(self, into: int, out: int):
        super().__init__()
        self.bn1, self.bn2 = _norm(into), _norm(out)
        self.conv1 = nn.Conv2d(into, out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x, shift1, shift2):
        y = self.conv1(_activate(self.bn1(x), shift1))
        return self.shortcut(x) + self.conv2(_activate(self.bn2(y), shift2))


class Decoder(nn.Module):
    """The layers of a decoder block; `bn2` is made and never called, as in the original."""

    def __init__(self, into: int, out: int, upsampling: tuple[int, int]):
        super().__init__()
        self.bn1, self.bn2 = _norm(into), _norm(into)
        self.conv1 = nn.ConvTranspose2d(into, out, upsampling, stride=upsampling, bias=False)
        self.conv_block2 = Block(2 * out, out)


class Network(nn.Module):
    """The layers of the original's `base`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        widths = config.widths
        self.bn0 = _norm(config.window_size // 2 + 1)
        self.pre_conv = nn.Conv2d(1, widths[0], 1)
        into = widths[0]
        for i, out in enumerate(widths, 1):
            setattr(self, f'encoder_block{i}', nn.ModuleDict({'conv_block1': Block(into, out)}))
            into = out
        self.conv_block7a = nn.ModuleDict({'conv_block1': Block(into, into)})
        for i, (out, upsampling) in enumerate(zip(reversed(widths), reversed(DOWNSAMPLING), strict=True), 1):
            setattr(self, f'decoder_block{i}', Decoder(into, out, upsampling))
            into = out
        self.after_conv = nn.Conv2d(into, 3, 1)


class Separator(nn.Module):
    """Mixtures [B, T] and embeddings [B, E] -> targets [B, T].

    Args:
        config: widths, window and hop; its precision is not used.
        dft_matrices: the STFT and its inverse as convolutions with DFT matrices, as the original has them; otherwise
            by `torch.stft` and `torch.istft`.
    """

    def __init__(self, config: ModelConfig, *, dft_matrices: bool):
        super().__init__()
        self.window_size, self.hop_size, self.dft_matrices = config.window_size, config.hop_size, dft_matrices
        self.base = Network(config)
        self.film = nn.ModuleDict()
        for tensor in torch_tensors(config):
            part, _, name = tensor.name.partition('.')
            if part == 'film' and name.endswith('.weight'):
                self.film[name.removesuffix('.weight')] = nn.Linear(*reversed(tensor.shape))
            elif name.startswith(('stft.', 'istft.')) and dft_matrices:
                self.register_buffer(_buffer_name(tensor.name), torch.zeros(tensor.shape))
        self.register_buffer('window', torch.hann_window(config.window_size), persistent=False)

    def load_tensors(self, tensors: dict) -> None:
        """Loads the original's state dict, numpy arrays by name (`models.torch_names.tensors_from_variables`)."""
        renamed = {}
        for name, array in tensors.items():
            is_buffer = name.startswith(('base.stft.', 'base.istft.'))
            renamed[_buffer_name(name) if is_buffer else name] = torch.tensor(array)
        self.load_state_dict({name: renamed[name] for name in self.state_dict()})

    def forward(self, mixture, embedding):
        with torch.autocast(mixture.device.type, enabled=False):
            real, imag = self.stft(mixture)
            magnitude = torch.sqrt(torch.clamp(real**2 + imag**2, min=1e-10))
        maps = self.maps(magnitude, embedding)
        with torch.autocast(mixture.device.type, enabled=False):
            gain, mask_real, mask_imag = maps.float().unbind(1)
            mask_real, mask_imag = torch.tanh(mask_real), torch.tanh(mask_imag)
            length = torch.sqrt(torch.clamp(mask_real**2 + mask_imag**2, min=1e-20))
            gain = torch.sigmoid(gain) / length
            mask_real, mask_imag = (F.pad(gain * part, (0, 1)) for part in (mask_real, mask_imag))
            real, imag = real * mask_real - imag * mask_imag, real * mask_imag + imag * mask_real
            return self.istft(real, imag, mixture.shape[-1])

    def maps(self, magnitude, embedding):
        """Magnitudes [B, N, F] -> the network's three maps [B, 3, N, F - 1]."""
        base, frames = self.base, magnitude.shape[1]
        shifts = {name: layer(embedding)[:, :, None, None] for name, layer in self.film.items()}
        # On a transposed view, PyTorch 2.13 computes wrong gradients of the norm on CPUs.
        x = magnitude.transpose(1, 2)[..., None].contiguous()
        x = base.bn0(x)[..., 0].transpose(1, 2)[:, None, :, :-1]
        x = base.pre_conv(F.pad(x, (0, 0, 0, -frames % TIME_DOWNSAMPLING)))
        skips = []
        for i, downsampling in enumerate(DOWNSAMPLING, 1):
            name = f'encoder_block{i}'
            shifted = (shifts[f'{name}->conv_block1->beta{k}'] for k in (1, 2))
            x = getattr(base, name)['conv_block1'](x, *shifted)
            skips.append(x)
            x = F.avg_pool2d(x, downsampling)
        x = base.conv_block7a['conv_block1'](x, *(shifts[f'conv_block7a->conv_block1->beta{k}'] for k in (1, 2)))
        for i, skip in enumerate(reversed(skips), 1):
            name = f'decoder_block{i}'
            block = getattr(base, name)
            x = block.conv1(_activate(block.bn1(x), shifts[f'{name}->beta1']))
            shifted = (shifts[f'{name}->conv_block2->beta{k}'] for k in (1, 2))
            x = block.conv_block2(torch.cat([x, skip], 1), *shifted)
        return base.after_conv(x)[:, :, :frames]

    def stft(self, waveform):
        """[B, T] -> real and imaginary parts [B, N, F]."""
        if not self.dft_matrices:
            spectrum = torch.stft(waveform, self.window_size, self.hop_size, window=self.window, return_complex=True)
            return spectrum.real.transpose(1, 2), spectrum.imag.transpose(1, 2)
        half = self.window_size // 2
        padded = F.pad(waveform[:, None], (half, half), mode='reflect')
        matrices = self.stft_conv_real_weight, self.stft_conv_imag_weight
        return [F.conv1d(padded, matrix, stride=self.hop_size).transpose(1, 2) for matrix in matrices]

    def istft(self, real, imag, length):
        """Real and imaginary parts [B, N, F] -> [B, T]."""
        real, imag = real.transpose(1, 2), imag.transpose(1, 2)
        if not self.dft_matrices:
            spectrum = torch.complex(real, imag)
            return torch.istft(spectrum, self.window_size, self.hop_size, window=self.window, length=length)
        real = torch.cat([real, real[:, 1:-1].flip(1)], 1)
        imag = torch.cat([imag, -imag[:, 1:-1].flip(1)], 1)
        frames = F.conv1d(real, self.istft_conv_real_weight) - F.conv1d(imag, self.istft_conv_imag_weight)
        weights = self.istft_ola_window[None, :, None].expand(1, -1, frames.shape[-1])
        size = 1, (frames.shape[-1] - 1) * self.hop_size + self.window_size
        total, weight = (F.fold(x, size, (1, self.window_size), stride=(1, self.hop_size)) for x in (frames, weights))
        half = self.window_size // 2
        return (total / weight.clamp(min=1e-11))[:, 0, 0, half : half + length]


def make_step(separator: Separator, *, autocast: bool, fused: bool):
    """The function (waveforms [B, T], embeddings [B, E]) -> loss of one optimizer step, as the original takes it."""
    weights = [weight for weight in separator.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=True, fused=fused
    )

    def step(waveforms, embeddings):
        # Without loudness and its random gains: less than this project's step does.
        mixtures = waveforms + waveforms.roll(1, 0)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(waveforms.device.type, torch.bfloat16, enabled=autocast):
            estimates = separator(mixtures, embeddings)
        loss = (estimates - waveforms).abs().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _buffer_name(name: str) -> str:
    """base.stft.conv_real.weight -> stft_conv_real_weight: a buffer's name has no dots."""
    return name.removeprefix('base.').replace('.', '_')


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=0.01)


def _activate(x, shift):
    return F.leaky_relu(x + shift, 0.01)
