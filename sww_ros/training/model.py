"""
The model under training: loaded, frozen where the recipe says so, its loss, what is written of it.

What is written is an ordinary checkpoint folder, which the engine opens, and on the way there the
state from which a training can go on. The loss is that of
transformers' own modules: video through the stock tower, rows through the stock model.

Attention has dense masks under SDPA, block masks under FlexAttention. Both say the same:
`mask_mod` is the rule of `streaming/visibility.py` for single pairs of rows, and the tests hold it
against `Visibility.mask`. FlexAttention has no backward pass on a CPU; there it runs uncompiled and
without gradients, which is how the tests compare it. Compiled, on a GPU, it never builds a dense
mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import functools
import hashlib
import json
from pathlib import Path
import shutil

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel

from sww_ros.models.files import Files
from sww_ros.models.loading import CONFIG_KEY, CheckpointError, load, load_stock, resolve
from sww_ros.streaming.checkpoint import Checkpoint
from sww_ros.streaming.layout import IGNORE
from sww_ros.streaming.perception import PixelSettings
from sww_ros.streaming.trace import VIDEO
from sww_ros.streaming.visibility import VISUAL_LANE
from sww_ros.training.clips import Batch
from sww_ros.training.frames import Sample
from sww_ros.training.recipe import Recipe, StreamSettings

_STATES = 'state-*[0-9]'
ADAPTED = (r'model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)'
           r'|model\.visual\.(deepstack_)?merger(_list\.\d+)?\.(mlp\.[02]|linear_fc[12])')
"""Where LoRA's adapters sit: every linear layer of the language model and of the mergers."""
_PIXELS = ('video_preprocessor_config.json', 'preprocessor_config.json')
_COPIED = ('processor_config.json', 'chat_template.json', 'chat_template.jinja')
ADAPTER = 'adapter'
"""The folder, inside the checkpoint's, of LoRA's adapters as peft writes them."""


@dataclass
class TrainedModel:
    """
    `net` is transformers' model, or peft's around it; `about` the same checkpoint as the engine
    sees it, without weights, in the type of its files.
    """

    net: torch.nn.Module
    about: Checkpoint

    @property
    def stock(self) -> PreTrainedModel:
        """Transformers' own model, adapters in its layers where there are some."""
        return self.net.get_base_model() if hasattr(self.net, 'get_base_model') else self.net

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The weights that are trained, by name."""
        return {name: weight for name, weight in self.net.named_parameters()
                if weight.requires_grad}


def load_model(recipe: Recipe, saving: bool = False) -> TrainedModel:
    """
    Load a checkpoint in fp32 and prepare it for the recipe.

    :param saving: under LoRA, a checkpoint of bf16 stays so; its adapters are fp32 all the same
    :raises CheckpointError: in words, for anything that cannot be streamed, hence not trained
    """
    # The engine's own loader checks the checkpoint; its weights are let go at once.
    about = load(recipe.model, device='meta', allow_download=recipe.allow_download, profile='none')
    _check_rank(recipe, about)
    saved = about.decoder.dtype
    # Not so fp16: activations take the type of what is frozen, and may be too large for that one.
    frozen = saving and recipe.lora_rank and saved == torch.bfloat16
    try:
        net = load_stock(recipe.model, saved if frozen else torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f'cannot load checkpoint {recipe.model!r}: {error}') from error
    for name, weight in net.named_parameters():
        if not weight.isfinite().all():
            raise CheckpointError(f'checkpoint {recipe.model!r} has no finite numbers in '
                                  f'{name!r}: save or download it again')
    return prepare(net, about, recipe)


def _check_rank(recipe: Recipe, about: Checkpoint) -> None:
    """Two factors of half a layer's width are as large as the layer: more is no adapter."""
    most = about.decoder.hidden // 2
    if recipe.lora_rank > most:
        raise ValueError(f'lora_rank must be at most {most}, half the width of this model, not '
                         f'{recipe.lora_rank}: lower it, or train the whole model')


def prepare(net: PreTrainedModel, about: Checkpoint, recipe: Recipe) -> TrainedModel:
    """Freeze the vision tower but its mergers, or everything but new adapters."""
    net.requires_grad_(True)
    for name, part in net.model.visual.named_children():
        part.requires_grad_('merger' in name)
    if recipe.lora_rank:
        net = _adapted(net, recipe)
    model = TrainedModel(net, about)
    if recipe.gradient_checkpointing:
        # Not the tower's: its blocks are frozen and keep nothing.
        language, options = model.stock.model.language_model, {'use_reentrant': False}
        if hasattr(language, 'activation_checkpointing_enable'):
            language.activation_checkpointing_enable(options)
        else:
            language.gradient_checkpointing_enable(options)
    net.train()
    return model


def _adapted(net: PreTrainedModel, recipe: Recipe) -> torch.nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError('LoRA needs peft: pip install -r requirements/training.txt '
                         f'({error})') from None
    # What the adapters start from is drawn from the recipe's seed, whatever was drawn before.
    torch.manual_seed(recipe.seed)
    return get_peft_model(net, LoraConfig(
        r=recipe.lora_rank, lora_alpha=recipe.alpha, lora_dropout=recipe.lora_dropout,
        target_modules=ADAPTED, bias='none'))


def export(model: TrainedModel, settings: StreamSettings, out: Path) -> None:
    """
    Write weights, config, tokenizer and processor; adapters are saved, then merged.

    The model is used up by it: adapters become part of its weights, and these get the type that
    they were loaded from.
    """
    net = model.net.eval()
    if net is not model.stock:
        net.save_pretrained(out / ADAPTER)
        net = net.merge_and_unload()
    net.requires_grad_(False)
    entry = dict(getattr(net.config, CONFIG_KEY, None) or {})
    for name in ('position_gap', 'profile'):
        entry.pop(name, None)
    setattr(net.config, CONFIG_KEY, entry | settings.entry())
    net.to(model.about.decoder.dtype).save_pretrained(out)
    model.about.tokenizer.save_pretrained(out)
    _write_processor(Files(resolve(model.about.name)), settings.pixels, out)
    # safetensors makes files that their owner alone may read.
    mode = (out / 'config.json').stat().st_mode
    for folder in (out, out / ADAPTER):
        for file in folder.glob('*.safetensors'):
            file.chmod(mode)


def _write_processor(files: Files, pixels: PixelSettings, out: Path) -> None:
    """Copy the processor's files; frames are as large as they were in training."""
    for name in _COPIED:
        found = files.find(name)
        if found and not (out / name).exists():
            (out / name).write_bytes(found.read_bytes())
    contents = {name: files.json(name) for name in _PIXELS if files.find(name)}
    for name, content in (contents or {_PIXELS[1]: dict(
            image_mean=pixels.mean, image_std=pixels.std, patch_size=pixels.patch_size,
            temporal_patch_size=pixels.temporal_patch_size,
            merge_size=pixels.merge_size)}).items():
        content['size'] = dict(shortest_edge=pixels.min_pixels, longest_edge=pixels.max_pixels)
        for key in content.keys() & {'min_pixels', 'max_pixels'}:
            content[key] = getattr(pixels, key)
        (out / name).write_text(json.dumps(content, indent=2) + '\n')


FLEX = 'sww_flex'
"""FlexAttention under a name of our own, so that only the language model takes it."""
BLOCK = 128
"""Rows of one block of a block mask; batches are filled up to whole ones, for fewer shapes."""
def choose(attention: str, device: torch.device) -> str:
    """
    Return 'sdpa' or 'flex' for 'auto' and for what was asked.

    :raises ValueError: where what was asked cannot train on this device
    """
    if attention == 'auto':
        return 'flex' if device.type == 'cuda' else 'sdpa'
    if attention == 'flex' and device.type != 'cuda':
        raise ValueError(f'attention flex cannot train on {device.type}: FlexAttention has no '
                         'backward pass there; leave the option out, or use sdpa')
    return attention


def mask_mod(of: Batch) -> Callable[..., torch.Tensor]:
    """
    Return FlexAttention's predicate: whether row `query` of a batch attends to row `key`.

    Rows of different clips never see each other.
    """
    clip, lane, step, sees = of.clip, of.lane, of.step, of.sees

    def visible(row, _head, query, key):
        causal = (key <= query) & (lane[row, key] == lane[row, query])
        across = (lane[row, query] != VISUAL_LANE) & (lane[row, key] == VISUAL_LANE)
        shown = step[row, key] < sees[row, query]
        return (clip[row, key] == clip[row, query]) & (causal | (across & shown))

    return visible


def block_mask(of: Batch) -> BlockMask:
    """Return the block mask of a batch; on a GPU its making is compiled, and nothing is dense."""
    rows, length = of.ids.shape
    make = _compiled_maker() if of.ids.is_cuda else create_block_mask
    return make(mask_mod(of), rows, None, length, length, device=str(of.ids.device),
                BLOCK_SIZE=BLOCK)


@functools.cache
def _compiled_maker() -> Callable[..., BlockMask]:
    return torch.compile(create_block_mask)


@functools.cache
def _compiled_attention() -> Callable[..., torch.Tensor]:
    return torch.compile(flex_attention, dynamic=True)


def _attend(module, query, key, value, attention_mask, scaling=None, **_):
    run = _compiled_attention() if query.is_cuda else flex_attention
    # Under autocast, turning queries and keys leaves them in fp32, and all three must agree.
    query, key = query.to(value.dtype), key.to(value.dtype)
    out = run(query, key, value, block_mask=attention_mask, scale=scaling,
              enable_gqa=query.shape[1] != key.shape[1])
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(FLEX, _attend)


class Loss(nn.Module):
    """
    The loss of a batch under the streaming mask, by transformers' own modules.

    The tower is frozen but for its mergers: its blocks keep nothing for a backward pass, as none
    of their inputs asks for a gradient.
    """

    def __init__(self, model: TrainedModel, attention: str) -> None:
        """
        Take the model.

        :param attention: 'sdpa' with dense masks, or 'flex' with block masks
        """
        super().__init__()
        self.net, self._attention, self._family = model.net, attention, model.about.family
        self._stock = [model.stock]  # In a list: its weights are in `net` already.
        language = model.stock.model.language_model
        language.config._attn_implementation = FLEX if attention == 'flex' else 'sdpa'

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy summed over the batch's answer tokens, fp32."""
        labelled = batch.labels != IGNORE
        return F.cross_entropy(self.logits(batch, labelled).float(), batch.labels[labelled],
                               reduction='sum')

    def logits(self, batch: Batch, at: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, vocabulary) of the rows where `at` (B, L) is True."""
        stock = self._stock[0]
        seen, visual = stock.model.visual(batch.patches, grid_thw=batch.grids), batch.ids == VIDEO
        embeds = stock.get_input_embeddings()(batch.ids.clamp(min=0))
        embeds = embeds.masked_scatter(visual[..., None], seen.pooler_output.to(embeds.dtype))
        mask = block_mask(batch) if self._attention == 'flex' else batch.mask()
        hidden = stock.model.language_model(
            inputs_embeds=embeds, position_ids=batch.positions,
            attention_mask=mask, use_cache=False,
            **self._family.stock_extras(seen, visual)).last_hidden_state
        return stock.lm_head(hidden[at])


def latest(out: Path) -> Path | None:
    """Return the newest whole state in a folder, if there is one."""
    return max(out.glob(_STATES), default=None, key=lambda path: path.name)


def identity(recipe: Recipe, samples: Sequence[Sample]) -> dict:
    """
    Return what a resumed training must share with the one that was stopped, as plain data.

    Samples count by what they say and in their order, files of annotations by nothing: they may
    have moved, and so may the folder of the videos.
    """
    content = [[sample.video.name, sample.topic, sample.prompt, sample.answer, sample.start_s,
                sample.end_s, *(sample.timed if recipe.silence else ())] for sample in samples]
    return dict(recipe.identity(), samples=hashlib.sha256(json.dumps(content).encode()).hexdigest())


def save_state(out: Path, about: dict, update: int, weights: dict[str, torch.Tensor],
               optimizer: torch.optim.Optimizer) -> None:
    """
    Write the state after `update` updates, then remove older ones.

    What is drawn at random depends on the seed and the update alone, and so does the learning
    rate: neither has a state.

    :param about: the training's `identity`
    :raises OSError: where it cannot be written; older states are kept
    """
    folder = out / f'state-{update:08d}'
    partial = folder.with_suffix('.partial')
    clear(partial)
    try:
        partial.mkdir(parents=True)
        save_file({name: weight.detach().contiguous() for name, weight in weights.items()},
                  partial / 'weights.safetensors')
        save_file(_moments(optimizer), partial / 'optimizer.safetensors')
        (partial / 'about.json').write_text(
            json.dumps(dict(update=update, recipe=about), indent=2) + '\n')
    except (OSError, SafetensorError, RuntimeError) as error:
        # On a full disk, what there is of it would be in the way of everything else.
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f'cannot write the state {folder}: {error}') from error
    clear(folder)
    # A state is whole once it has its name.
    partial.rename(folder)
    for path in out.glob(_STATES):
        if path != folder:
            clear(path)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's state by weight and name; its rates are the recipe's."""
    return {f'{index}.{name}': value for index, moments in optimizer.state_dict()['state'].items()
            for name, value in moments.items()}


def load_state(folder: Path, wanted: dict, weights: dict[str, torch.Tensor],
               optimizer: torch.optim.Optimizer) -> int:
    """
    Put a state into weights and optimizer, and return how many updates it has had.

    :param wanted: the `identity` of the training that goes on
    :raises ValueError: for a state of another recipe, or one that cannot be read
    """
    try:
        about = json.loads((folder / 'about.json').read_text())
        saved = load_file(folder / 'weights.safetensors')
        moments = load_file(folder / 'optimizer.safetensors')
    except Exception as error:  # noqa: BLE001 - each file has errors of its own kind
        raise ValueError(f'cannot read the state {folder}: {error}; remove it, or start anew '
                         'with --no-resume') from error
    for name, value in wanted.items():
        was = about['recipe'].get(name)
        if was != value:
            other = (f'with {name} {was!r}, not {value!r}' if name != 'samples' else
                     'on other samples (the annotations have changed, or their order)')
            raise ValueError(f'{folder.parent} holds a training {other}: give another --out, '
                             'or start anew with --no-resume')
    if saved.keys() != weights.keys():
        raise ValueError(f'the state {folder} is of another model: give another --out, or start '
                         'anew with --no-resume')
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved[name])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in moments.items():
        index, _, name = key.partition('.')
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(dict(optimizer.state_dict(), state=state))
    return int(about['update'])


def clear(path: Path) -> None:
    """Remove a state, or what is left of one."""
    if path.exists():
        shutil.rmtree(path)


def clear_all(out: Path) -> None:
    """Remove all states of a folder."""
    for path in out.glob('state-*'):
        clear(path)
