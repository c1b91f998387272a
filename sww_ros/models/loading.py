"""Loads a checkpoint for streaming: the built-in one, a folder, or a hub id; tries it once."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
import sys
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from sww_ros.models.files import JSON_FILES, TYPES, CheckpointError, Files, check_penalty, told
from sww_ros.models.packed import read_packed
from sww_ros.models.plan import Characters, available_bytes, check_memory, plan_of
from sww_ros.streaming.checkpoint import Checkpoint, StreamDefaults
from sww_ros.streaming.config import BY_NAME, SessionConfig
from sww_ros.streaming.decoder import Chunk
from sww_ros.streaming.family import Family, Wanted, family_of
from sww_ros.streaming.generation import Vocabulary
from sww_ros.streaming.perception import Perception
from sww_ros.streaming.positions import text_positions

BUILTIN = 'builtin'
CONFIG_KEY = 'speak_while_watching'
_TOKENS = ('vocab.json', 'merges.txt')
_PREPROCESSORS = ('video_preprocessor_config.json', 'preprocessor_config.json')


def builtin_path() -> Path:
    """The folder of the checkpoint that ships with the package."""
    return Path(__file__).parent / BUILTIN


def load(model: str = BUILTIN, *, device: str = 'cpu', dtype: str = '',
         allow_download: bool = False, profile: str = '', quantize: str = 'none',
         session: SessionConfig | None = None) -> Checkpoint:
    """
    Load a checkpoint from safetensors.

    :param model: 'builtin', a folder in the ordinary format, or a hub id
    :param dtype: float32, bfloat16, float16, float64; empty for fp32 on a CPU, else as saved
    :param allow_download: whether a hub id may be fetched from the network
    :param profile: how it was trained to be asked, 'none' for as its family is; empty for what its
        files and its name say
    :param quantize: the form of the language model's matrices: none, int8, int4
    :param session: the settings of a session whose lanes must fit beside the weights too, which is
        asked before those are read
    :raises CheckpointError: in words, for anything that cannot be streamed, or does not fit
    """
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise CheckpointError(f'device {device!r} is not there: this PyTorch '
                              f'({torch.__version__}) sees no GPU')
    BY_NAME['quantize'].check(quantize)
    source = resolve(model)
    try:
        described = Described(model, source, allow_download, profile)
        return _load(described, device, dtype, quantize, session)
    except CheckpointError as error:
        raise CheckpointError(f'cannot load checkpoint {model!r}: {error}') from error


class Described:
    """A checkpoint as its small files and the headers of its weights describe it."""

    def __init__(self, model: str, source: str, allow_download: bool = False, profile: str = '',
                 stand_in: bool = False) -> None:
        """
        Read and check them; none of the weights is read.

        :param source: as `resolve` returns it
        :param profile: as `load` takes it
        :param stand_in: whether the tokenizer may be missing, where texts are only measured
        :raises CheckpointError: in words, for anything that cannot be streamed
        """
        self._options = dict(local_files_only=not allow_download, trust_remote_code=False)
        self._source, self.files = source, Files(source, local=not allow_download)
        self._family, self.config = _config(source, self.files, self._options)
        self._about: Any = dict(
            tokenizer=(Characters() if stand_in and not _has_tokenizer(self.files) else
                       _tokenizer(source, self.files, self._options)),
            name=model, preprocessor=_preprocessor(self.files),
            profile=profile or _profile_of(self._family, source, self.files.json('config.json')),
            repetition_penalty=check_penalty(self.files.json('generation_config.json')))

    def outline(self, dtype: torch.dtype, quantize: str = 'none') -> Checkpoint:
        """Return it without weights, on the device 'meta'; errors as above."""
        try:
            net = self._family.outline(self.config).to(dtype)
        except Exception as error:  # noqa: BLE001 - whatever its sizes come to
            raise CheckpointError(f'config.json cannot be used: {told(error)}') from error
        return take_apart(net, **self._about, wanted=Wanted(dtype, net.device, quantize))

    def read(self, device: str, dtype: torch.dtype, quantize: str = 'none') -> Checkpoint:
        """Return it with its weights; errors as above."""
        types = set(self.files.weights().values())
        # In the type of its files nothing is read or converted before it is wanted.
        saved = next((each for each, name in TYPES.items() if types == {name}), dtype)
        if not sys.stderr.isatty():
            # In a log, bars are lines without end.
            disable_progress_bar()
        try:
            net, found = _stock(self._family, self._source, self.files, config=self.config,
                                dtype=saved, **self._options)
        except CheckpointError:
            raise
        except Exception as error:  # noqa: BLE001 - each file has errors of its own kind
            raise CheckpointError(f'its weights cannot be loaded: {told(error)}') from error
        for name, is_of, made in sorted(found['mismatched_keys']):
            raise CheckpointError(f'the weight {name!r} is of shape {tuple(is_of)}, and '
                                  f'config.json makes it {tuple(made)}')
        if missing := sorted(found['missing_keys']):
            # transformers only warns, and goes on with random weights in their place.
            raise CheckpointError(f'it lacks {len(missing)} weights, {missing[0]!r} among them: '
                                  'save or download it again, whole')
        wanted = Wanted(dtype, torch.device(device), quantize)
        try:
            return take_apart(net.eval(), **self._about, wanted=wanted)
        except RuntimeError as error:  # There is no memory left for them, say.
            raise CheckpointError(f'its weights cannot be loaded: {told(error)}') from error


def _stock(family: Family, source: str, files: Files, **options: Any) -> tuple[Any, dict]:
    """Return transformers' model of a checkpoint, unpacked if it is packed, and what it lacks."""
    options |= dict(output_loading_info=True, ignore_mismatched_sizes=True)
    if not files.packing:
        return family.stock(source, **options)
    state = read_packed(files.weight_files(), files.packing, options['dtype'])
    net, found = family.stock(None, state_dict=state, **options)
    if files.find('generation_config.json'):
        net.generation_config = GenerationConfig.from_pretrained(source, local_files_only=True)
    return net, found


def _load(described: Described, device: str, dtype: str, quantize: str,
          session: SessionConfig | None) -> Checkpoint:
    kind = _dtype(dtype, device, described.config)
    outline = described.outline(kind, quantize)
    if device.startswith('cpu'):
        check_memory(plan_of(outline, device, session, bool(described.files.packing)),
                     available_bytes())
    checkpoint = described.read(device, kind, quantize)
    if device != 'meta':
        try_out(checkpoint)
    return checkpoint


def load_stock(model: str, dtype: torch.dtype, quantize: str = 'none') -> Any:
    """
    Return transformers' own model of a checkpoint on this machine, as the oracle of a run.

    :param quantize: the form of the matrices of that run: the oracle has what they stand for
    :raises ValueError: in words, for one of no family that can be streamed
    """
    source = resolve(model)
    files, options = Files(source), dict(local_files_only=True)
    family = family_of(files.json('config.json').get('model_type'))
    if files.packing:
        net, _ = _stock(family, source, files, config=family.config(source, files, **options),
                        dtype=dtype, **options)
    else:
        net = family.stock(source, dtype=dtype, **options)
    if quantize != 'none':
        family.quantize(net, quantize)
    return net


def _config(source: str, files: Files, options: dict) -> tuple[Family, Any]:
    """Return the family of a checkpoint and its config, once all in it is checked."""
    try:
        content = {name: files.json(name) for name in JSON_FILES}['config.json']
    except OSError as error:
        raise CheckpointError(told(error)) from error
    if not content:
        hint = '' if not options['local_files_only'] else (
            'it is neither a folder nor in the local cache: give a path, or allow downloads')
        raise CheckpointError(hint or 'it has no config.json')
    try:
        family = family_of(content.get('model_type'))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return family, family.config(source, files, **options)


def _has_tokenizer(files: Files) -> bool:
    return bool(files.find('tokenizer.json') or all(files.find(name) for name in _TOKENS))


def _tokenizer(source: str, files: Files, options: dict):
    if not _has_tokenizer(files):
        raise CheckpointError(f'it has no tokenizer: tokenizer.json, or {" and ".join(_TOKENS)}, '
                              'are missing; copy them from the checkpoint that it was made from')
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        tokenizer('x', add_special_tokens=False)  # Some of its settings are looked at only now.
        return tokenizer
    except Exception as error:  # noqa: BLE001 - each of its files has errors of its own kind
        raise CheckpointError(f'its tokenizer cannot be loaded: {told(error)}') from error


def _preprocessor(files: Files) -> tuple[str, dict]:
    """Return the name and the content of the processor's file, {} where there is none."""
    for name in _PREPROCESSORS:
        if content := files.json(name):
            return name, content
    return _PREPROCESSORS[1], {}


def take_apart(net: Any, tokenizer: Any, *, name: str = 'model',
               preprocessor: tuple[str, dict] = ('', {}), repetition_penalty: float = 1.0,
               profile: str = 'none', wanted: Wanted | None = None) -> Checkpoint:
    """
    Turn transformers' model into a checkpoint for streaming; the model is used up by it.

    :param preprocessor: name and content of the processor's file
    :param profile: how it was trained to be asked, 'none' for as its family is
    :param wanted: how its weights are to be; as they are, if not given
    :raises CheckpointError: for what cannot be streamed
    """
    config, family = net.config, family_of(net.config.model_type)
    asked = None if profile == 'none' else family.profiles.get(profile)
    if profile != 'none' and not asked:
        raise CheckpointError(f'there is no profile {profile!r} for {family.name}, only '
                              f'{", ".join(sorted(family.profiles))} and none')
    parameters = sum(weight.numel() for weight in net.parameters())
    entry, silence = _entry(config, tokenizer)
    _check_tokenizer(tokenizer, net, family)
    entry = {**(asked.defaults if asked else {}), **entry}
    # Everything else in the entry may be there for a checkpoint that was never trained to stream.
    trained = 'position_encoding' in entry
    entry.setdefault('tokens_per_second', family.tokens_per_second(config))
    try:
        defaults = StreamDefaults(**entry)
    except ValueError as error:
        raise CheckpointError(f'config.json: {CONFIG_KEY}: {error}') from error
    pixels = family.pixels(*preprocessor, config, trained)
    if asked:
        pixels = replace(pixels, min_pixels=asked.pixels[0], max_pixels=asked.pixels[1])
        repetition_penalty = asked.repetition_penalty or repetition_penalty
    vision = family.vision(net, wanted)
    try:
        decoder = family.decoder(net, wanted)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return Checkpoint(
        name=name, family=family, parameters=parameters, decoder=decoder,
        perception=Perception(vision, pixels), tokenizer=tokenizer,
        vocabulary=Vocabulary(_stop_tokens(net, tokenizer, family), silence), defaults=defaults,
        trained=trained, repetition_penalty=repetition_penalty, profile=asked,
        asked=profile if asked else '')


def _profile_of(family: Family, source: str, config: dict) -> str:
    """
    Return the profile of a checkpoint, told from what it says of itself and what it is called.

    :param source: its folder or hub id; the hub's cache has the id in its path
    """
    entry = config.get(CONFIG_KEY)
    if isinstance(entry, dict) and 'profile' in entry:
        return str(entry['profile'])
    if isinstance(entry, dict) and 'position_encoding' in entry:
        return 'none'  # It was trained again, here.
    folder = Path(source).resolve()
    names = ' '.join([folder.name, *(part for part in folder.parts if part.startswith('models--')),
                      str(config.get('_name_or_path'))]).lower()
    return next((name for name, profile in family.profiles.items()
                 if any(known in names for known in profile.known_as)), 'none')


def _entry(config, tokenizer) -> tuple[dict, int]:
    """Return what the config says of streaming, and the silence token, -1 where there is none."""
    entry = getattr(config, CONFIG_KEY, None) or {}
    if not isinstance(entry, dict):
        raise CheckpointError(f'config.json: {CONFIG_KEY} is {entry!r}, not an object')
    entry = dict(entry)
    entry.pop('profile', None)
    silence = _token(tokenizer, entry.pop('silence_token', None))
    known = {f.name for f in fields(StreamDefaults)}
    if unknown := set(entry) - known:
        raise CheckpointError(f'it has unknown {CONFIG_KEY} settings {sorted(unknown)}; known: '
                              f'{sorted(known)}')
    return entry, silence


def _check_tokenizer(tokenizer: Any, net: Any, family: Family) -> None:
    """What is written around a stream must be single tokens, and the model must know them all."""
    for token in family.turns.special:
        if len(tokenizer(token, add_special_tokens=False)['input_ids']) != 1:
            raise CheckpointError(f'its tokenizer does not know {token!r}: give it the tokenizer '
                                  'of the checkpoint that it was made from')
    rows = net.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise CheckpointError(f'its tokenizer has {len(tokenizer)} tokens, and the model {rows}: '
                              'they do not belong together')


def resolve(model: str) -> str:
    """
    Return the folder of a checkpoint, or its hub id.

    :raises CheckpointError: for a folder that is none
    """
    if model == BUILTIN:
        if not (builtin_path() / 'config.json').exists():
            raise CheckpointError('the built-in checkpoint is missing from this installation: '
                                  'train it with `python -m sww_ros.shapes.train`, or give a path')
        return str(builtin_path())
    path = Path(model).expanduser()
    if path.exists() and not (path / 'config.json').exists():
        raise CheckpointError(f'{model!r} has no config.json: give the folder of a checkpoint')
    if not path.exists() and model.startswith(('/', './', '../', '~')):
        raise CheckpointError(f'no checkpoint at {model!r}: the folder does not exist')
    return str(path) if path.exists() else model


def _dtype(dtype: str, device: str, config) -> torch.dtype:
    known = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16,
             'float64': torch.float64}
    if dtype:
        if dtype not in known:
            raise CheckpointError(f'unknown dtype {dtype!r}; one of {", ".join(known)}')
        return known[dtype]
    if str(device).startswith('cpu'):
        return torch.float32
    return config.dtype or torch.bfloat16


def _token(tokenizer, token: object) -> int:
    if not token:
        return -1
    if not isinstance(token, str):
        raise CheckpointError(f'config.json: silence_token must be a text, not {token!r}')
    index = tokenizer.convert_tokens_to_ids(token)
    if index is None or index == tokenizer.unk_token_id:
        raise CheckpointError(f'the silence token {token!r} is not in the tokenizer')
    return int(index)


def _stop_tokens(net: Any, tokenizer: Any, family: Family) -> frozenset[int]:
    stop = net.generation_config.eos_token_id if net.generation_config else None
    stop = [*stop] if isinstance(stop, (list, tuple)) else [stop]
    if not all(token is None or type(token) is int for token in stop):
        raise CheckpointError(f'eos_token_id must be a token or a list of them, not {stop!r}')
    named = [tokenizer.convert_tokens_to_ids(family.turns.end), tokenizer.eos_token_id]
    return frozenset(int(t) for t in (*stop, *named) if t is not None)


def try_out(checkpoint: Checkpoint) -> None:
    """
    Let the checkpoint see a small gray picture and predict one token.

    A NaN or an infinity in any layer, a table of zeros, or a type too narrow for the weights
    shows in it: the model would say the same token for ever.

    :raises CheckpointError: in words
    """
    decoder, perception = checkpoint.decoder, checkpoint.perception
    side = 2 * perception.settings.unit
    gray = np.full((side, side, 3), 100, np.uint8)
    prefix = checkpoint.encode(*checkpoint.turns.prefix(checkpoint.defaults.system, ''))
    try:
        seen = perception.embed(perception.patches([gray], side, side), side, side)
        rows, deep = decoder.rows_of(prefix, seen)
        positions = torch.from_numpy(text_positions(0, len(rows)))
        logits, = decoder.step([Chunk(decoder.new_lane(len(rows)), rows, positions, predict=True,
                                      deep=deep)])
    except (RuntimeError, IndexError) as error:
        raise CheckpointError(f'the model cannot run: {error}') from error
    sees = all(part.isfinite().all() for part in (seen.rows, deep) if part is not None)
    if not sees or not logits.isfinite().all():
        where = 'its output' if sees else 'its vision tower'
        narrow = (', or float16 is too narrow for it (try bfloat16 or float32)'
                  if decoder.dtype == torch.float16 else '')
        raise CheckpointError(f'the model computes no finite numbers ({where}): its weights are '
                              f'broken{narrow}; save or download it again')
    if logits.max() == logits.min():
        raise CheckpointError('the model likes all tokens alike: its weights are zero; save or '
                              'download it again')
