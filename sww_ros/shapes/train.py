"""
Trains the built-in checkpoint on the shapes world.

`python -m sww_ros.shapes.train --out FOLDER` reproduces it from nothing; it can be stopped and
goes on where it was. Progress goes to the screen and to FOLDER/training.jsonl.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
import json
import math
from pathlib import Path
import time

import cv2
import numpy as np
import torch
from torch import nn
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from sww_ros.settings import add_option, setting, settings_of
from sww_ros.shapes.checkpoint import (
    AUXILIARY,
    IGNORE,
    WAIT_K,
    Batcher,
    BatchRecipe,
    ShapesBatch,
    build_config,
    build_model,
    build_tokenizer,
    save_checkpoint,
)
from sww_ros.shapes.truth import NARRATE, standing_questions
from sww_ros.streaming.positions import DEFAULT_SCHEME, SCHEMES

MUON_LR = 3e-3
ADAM_LR = 3e-3


class ModelWithHeads(nn.Module):
    """The model with the auxiliary heads that are dropped at export."""

    def __init__(self, model, hidden: int) -> None:
        super().__init__()
        self.model = model
        self.middle = model.config.text_config.num_hidden_layers // 2
        self.looks = nn.ModuleDict({k: nn.Linear(hidden, AUXILIARY[k])
                                    for k in ('color', 'shape', 'motion')})
        self.happenings = nn.ModuleDict({k: nn.Linear(hidden, AUXILIARY[k])
                                         for k in ('color', 'shape', 'motion', 'event')})
        self.places = nn.ModuleDict({k: nn.Linear(hidden, 3) for k in ('row', 'column')})
        # The patch convolution as the matrix it is, so that Muon can train it.
        convolution = model.model.visual.patch_embed.proj
        self.patch = nn.Parameter(convolution.weight.detach().reshape(len(convolution.weight), -1))
        del convolution._parameters['weight']

    def export(self) -> nn.Module:
        """Put the patch matrix back where `save_pretrained` expects it, and return the model."""
        convolution = self.model.model.visual.patch_embed.proj
        shape = (len(self.patch), 3, 2, 14, 14)
        convolution.weight = nn.Parameter(self.patch.detach().reshape(shape).clone())
        return self.model

    def see(self, patches: torch.Tensor) -> torch.Tensor:
        """
        Run the vision tower over all steps of all clips as one batched attention.

        The stock tower loops over steps in Python; the result is the same (see the tests).
        """
        tower = self.model.model.visual
        x = patches @ self.patch.T
        steps = len(x) // 36
        grid = torch.tensor([[1, 6, 6]])
        cos, sin = _rotary(tower, grid)
        x = x.view(steps, 36, -1)
        for block in tower.blocks:
            attention = block.attn
            h = block.norm1(x)
            q, k, v = attention.qkv(h).view(steps, 36, 3, attention.num_heads, -1).unbind(2)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            o, _ = _attend(attention, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
            x = x + attention.proj(o.reshape(steps, 36, -1))
            x = x + block.mlp(block.norm2(x))
        return tower.merger(x.reshape(steps * 36, -1))

    def forward(self, batch: ShapesBatch) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        """Return (loss, auxiliary loss, shares of right predictions by kind of token)."""
        seen = self.see(batch.patches)
        rows = batch.ids.shape[0]
        embeds = self.model.get_input_embeddings()(batch.ids)
        embeds = embeds.index_copy(
            1, batch.visual, seen.view(rows, len(batch.visual), -1).to(embeds.dtype))
        out = self.model.model.language_model(
            inputs_embeds=embeds, position_ids=batch.positions, attention_mask=batch.mask,
            use_cache=False, output_hidden_states=True)
        labelled = batch.labels != IGNORE
        target = batch.labels[labelled]
        logits = self.model.lm_head(out.last_hidden_state[labelled])
        cost = F.cross_entropy(logits, target, reduction='none')
        asked = labelled.nonzero()[:, 1] >= batch.questions
        weight = torch.where(asked, 1.5, 1.0)
        loss = (cost * weight).sum() / weight.sum()
        middle = out.hidden_states[self.middle][:, batch.visual]
        auxiliary = self._auxiliary(seen, middle, batch.cells)
        right = (logits.argmax(-1) == target).float()
        shares = {'narration': right[~asked].mean().item(),
                  'answers': right[asked].mean().item() if asked.any() else 1.0}
        return loss, auxiliary, shares

    def _auxiliary(self, seen: torch.Tensor, middle: torch.Tensor,
                   cells: torch.Tensor) -> torch.Tensor:
        cells = cells.view(-1, cells.shape[-1])
        middle = middle.reshape(len(cells), -1)
        truth = dict(color=cells[:, 0], shape=cells[:, 1], motion=cells[:, 2], event=cells[:, 3])
        occupied = cells[:, 0] > 0
        weights = torch.where(truth['event'] > 0, 1.5, torch.where(occupied, 1.0, 0.2))
        index = torch.arange(len(cells)) % 9
        truth.update(row=index // 3, column=index % 3)
        total = seen.new_zeros(())
        for heads, features in ((self.looks, seen), (self.happenings, middle),
                                (self.places, middle)):
            for name, head in heads.items():
                cost = F.cross_entropy(head(features), truth[name], reduction='none')
                scale = 0.5 if name in ('row', 'column') else 1.0
                total = total + scale * (cost * weights).sum() / weights.sum()
        return total


def _attend(module, query, key, value, attention_mask=None, **_):
    """Attention in fp32: on a CPU its backward pass is twice as fast as in bf16."""
    with torch.autocast('cpu', enabled=False):
        groups = query.shape[1] // key.shape[1]
        key, value = (x.float().repeat_interleave(groups, dim=1) for x in (key, value))
        out = F.scaled_dot_product_attention(query.float(), key, value, attn_mask=attention_mask)
    return out.transpose(1, 2), None


AttentionInterface.register('sww_training', _attend)
AttentionMaskInterface.register('sww_training', ALL_MASK_ATTENTION_FUNCTIONS['sdpa'])


def _rotary(tower, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from transformers.vision_utils import get_vision_position_ids
    ids = get_vision_position_ids(grid, tower.spatial_merge_size)
    cos, sin = tower.rotary_pos_emb(torch.zeros(1), ids)
    return cos[:, None], sin[:, None]


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


def draw_recipe(progress: float, clips: int, rng: np.random.Generator) -> BatchRecipe:
    """The curriculum: short clips of one shape first, then two and three shapes, longer clips."""
    if progress < 0.06:
        steps, objects = 8, 1
    elif progress < 0.25:
        steps, objects = (8 if rng.random() < 0.65 else 16), (1 if rng.random() < 0.3 else 2)
    else:
        steps = int(rng.choice([8, 16, 24, 32], p=[.15, .6, .15, .1]))
        objects = int(rng.choice([1, 2, 3], p=[.12, .73, .15]))
    prompt = NARRATE
    if progress > 0.15 and rng.random() < 0.12:
        prompt = str(rng.choice(standing_questions()[1:]))
    late = int(rng.integers(1, 33)) if rng.random() < 0.25 else 0
    return BatchRecipe(clips=max(4, clips * 16 // max(steps, 8)) if steps != 8 else clips,
                       steps=steps, max_objects=objects, prompt=prompt, late_start=late,
                       corrupt=0.02 if progress > 0.25 else 0.0)


def draw_short(progress: float, clips: int, rng: np.random.Generator) -> BatchRecipe:
    """The experiments' curriculum: clips of 8 steps, one shape first, then mostly two."""
    objects = 1 if progress < 0.3 or rng.random() < 0.25 else 2
    return BatchRecipe(clips=clips, steps=8, max_objects=objects)


def draw_lengths(progress: float, clips: int, rng: np.random.Generator) -> BatchRecipe:
    """The same with clips of 1 to 8 steps, as a stock checkpoint has seen clips of any length."""
    steps = 8 if rng.random() < 0.4 else int(rng.integers(1, 8))
    return replace(draw_short(progress, clips, rng), steps=steps)


CURRICULA = dict(builtin=draw_recipe, short=draw_short, lengths=draw_lengths)


def build_optimizers(model: ModelWithHeads) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings, vectors and auxiliary heads."""
    named = dict(model.named_parameters())
    inner = [p for n, p in named.items()
             if p.ndim == 2 and 'embed_tokens' not in n and (n.startswith('model') or n == 'patch')]
    chosen = {id(p) for p in inner}
    outer = [p for p in named.values() if id(p) not in chosen]
    return [torch.optim.Muon(inner, lr=MUON_LR, weight_decay=0.05,
                             adjust_lr_fn='match_rms_adamw'),
            torch.optim.AdamW(outer, lr=ADAM_LR, betas=(0.9, 0.97), weight_decay=0.01)]


def learning_rate_scale(step: int, steps: int) -> float:
    """Warm-up over 30 steps, flat to 40 %, then a cosine down to 2 %."""
    if step < 30:
        return (step + 1) / 30
    progress = max(0.0, (step / steps - 0.4) / 0.6)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class RunSettings:
    """What the command line says."""

    out: Path
    steps: int = setting(3200, 'batches')
    clips: int = setting(48, 'clips of 16 steps in a batch, over all workers')
    seed: int = setting(1, 'of weights and batches')
    workers: int = setting(2, 'processes of one thread each')
    hidden: int = setting(128, 'width of the language model')
    layers: int = setting(6, 'its layers')
    bf16: bool = setting(True, 'compute in bf16')
    log_every: int = setting(50, 'batches between lines of the log')
    save_every: int = setting(250, 'batches between states')
    position_encoding: str = setting(
        DEFAULT_SCHEME, 'position scheme', choices=lambda: tuple(SCHEMES))
    offline: bool = setting(False, 'describe and answer once the clip has been seen whole')
    curriculum: str = setting('builtin', 'which clips', choices=tuple(CURRICULA))
    tokens_per_second: int = setting(WAIT_K, 'positions of a second of video')


class TrainingWorker:
    """One worker's training run: the same weights everywhere, its own share of every batch."""

    def __init__(self, settings: RunSettings, rank: int) -> None:
        self.settings, self.rank = settings, rank
        self.tokenizer = build_tokenizer()
        config = build_config(self.tokenizer, settings.hidden, settings.layers,
                              settings.position_encoding, settings.offline,
                              settings.tokens_per_second)
        model = build_model(config, settings.seed)
        model.set_attn_implementation('sww_training')
        self.model = ModelWithHeads(model, settings.hidden)
        self.optimizers = build_optimizers(self.model)
        self.batcher = Batcher(self.tokenizer, settings.position_encoding, settings.offline,
                               settings.tokens_per_second)
        self.first = 0
        self.state_file = settings.out / 'training_state.pt'
        if self.state_file.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.state_file, weights_only=True)
        self.model.load_state_dict(state['model'])
        for optimizer, saved in zip(self.optimizers, state['optimizers']):
            optimizer.load_state_dict(saved)
        self.first = state['step']

    def _save_state(self, step: int) -> None:
        partial = self.state_file.with_suffix('.tmp')
        torch.save(dict(model=self.model.state_dict(), step=step,
                        optimizers=[o.state_dict() for o in self.optimizers]), partial)
        partial.replace(self.state_file)

    def _prepare(self, step: int) -> ShapesBatch:
        settings = self.settings
        recipe = CURRICULA[settings.curriculum](
            step / settings.steps, settings.clips // settings.workers,
            np.random.default_rng([settings.seed, step]))
        return self.batcher.make(
            recipe, np.random.default_rng([settings.seed, step, self.rank + 1]))

    def _average_gradients(self) -> None:
        if self.settings.workers == 1:
            return
        for weight in self.model.parameters():
            if weight.grad is not None:
                dist.all_reduce(weight.grad)
                weight.grad /= self.settings.workers

    def _step(self, step: int, batch: ShapesBatch) -> dict[str, float]:
        settings = self.settings
        scale = learning_rate_scale(step, settings.steps)
        for optimizer, rate in zip(self.optimizers, (MUON_LR, ADAM_LR)):
            for group in optimizer.param_groups:
                group['lr'] = rate * scale
        with torch.autocast('cpu', torch.bfloat16, enabled=settings.bf16):
            loss, auxiliary, shares = self.model(batch)
        (loss + (1.0 if step < 0.7 * settings.steps else 0.3) * auxiliary).backward()
        self._average_gradients()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return dict(loss=loss.item(), auxiliary=auxiliary.item(), **shares)

    def run(self) -> None:
        """Train to the end, and save the checkpoint."""
        settings = self.settings
        sums: dict[str, list[float]] = {}
        started, clips = time.monotonic(), 0
        with ThreadPoolExecutor(1) as pool, open(settings.out / 'training.jsonl', 'a') as log:
            ahead = pool.submit(self._prepare, self.first)
            for step in range(self.first, settings.steps):
                batch = ahead.result()
                ahead = pool.submit(self._prepare, min(step + 1, settings.steps - 1))
                for name, value in self._step(step, batch).items():
                    sums.setdefault(name, []).append(value)
                clips += batch.ids.shape[0] * settings.workers
                if self.rank:
                    continue
                if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
                    seconds = time.monotonic() - started
                    line = json.dumps(dict(
                        step=step + 1, minutes=round(seconds / 60, 1),
                        clips_per_s=round(clips / seconds, 1),
                        **{k: round(sum(v) / len(v), 4) for k, v in sums.items()}))
                    sums = {}
                    print(line, flush=True)
                    log.write(line + '\n')
                    log.flush()
                if (step + 1) % settings.save_every == 0:
                    self._save_state(step + 1)
        if self.rank == 0:
            save_checkpoint(self.model.export(), self.tokenizer, settings.out)
            print(f'saved to {settings.out}', flush=True)


def train(rank: int, settings: RunSettings) -> None:
    """Run one worker; gradients are averaged over all of them after every batch."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    if settings.workers > 1:
        dist.init_process_group('gloo', init_method=f'file://{settings.out.resolve()}/.rendezvous',
                                rank=rank, world_size=settings.workers)
    worker = TrainingWorker(settings, rank)
    if rank == 0:
        count = sum(p.numel() for n, p in worker.model.named_parameters()
                    if n.startswith('model') or n == 'patch')
        print(f'{count / 1e6:.2f} M parameters, {settings.workers} workers, '
              f'steps {worker.first} to {settings.steps}', flush=True)
    worker.run()
    if settings.workers > 1:
        dist.destroy_process_group()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--out', type=Path, required=True, help='folder of the checkpoint')
    for declared in settings_of(RunSettings):
        add_option(parser, declared)
    settings = RunSettings(**vars(parser.parse_args()))
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / '.rendezvous').unlink(missing_ok=True)
    if settings.workers == 1:
        train(0, settings)
    else:
        mp.spawn(train, (settings,), nprocs=settings.workers)
    (settings.out / '.rendezvous').unlink(missing_ok=True)


if __name__ == '__main__':
    main()
