"""Whether the sizes in a Qwen2.5-VL's config fit together."""

from __future__ import annotations

from sww_ros.models.checks import check_divides, check_positive, check_whole
from sww_ros.models.files import CheckpointError


def check_config(config) -> None:
    """
    Check that the sizes in transformers' config fit together.

    :raises CheckpointError: for what no such model can have
    """
    text, vision = config.text_config, config.vision_config
    check_whole('num_key_value_heads', text.num_key_value_heads, 1, text.num_attention_heads)
    check_divides('num_key_value_heads', text.num_key_value_heads, 'num_attention_heads',
                   text.num_attention_heads)
    if not getattr(text, 'head_dim', None):
        check_divides('num_attention_heads', text.num_attention_heads, 'hidden_size',
                       text.hidden_size)
    check_positive('rms_norm_eps', text.rms_norm_eps)
    check_positive('tokens_per_second of the vision tower', vision.tokens_per_second)
    _check_rotary(text)
    check_divides('num_heads of the vision tower', 4 * vision.num_heads,
                   'hidden_size of the vision tower', vision.hidden_size, 'four times ')
    unit = vision.patch_size * vision.spatial_merge_size
    if vision.window_size < unit:
        raise CheckpointError(f'window_size {vision.window_size} is less than one visual token, '
                              f'{unit} pixels')
    whole = vision.fullatt_block_indexes
    if not isinstance(whole, (list, tuple)) or not all(type(index) is int for index in whole):
        raise CheckpointError(f'fullatt_block_indexes must be a list of blocks, not {whole!r}')
    if vision.out_hidden_size != text.hidden_size:
        raise CheckpointError(f'out_hidden_size of the vision tower is {vision.out_hidden_size}, '
                              f'hidden_size of the text {text.hidden_size}: they must be equal')


def _check_rotary(text) -> None:
    rotary = text.rope_parameters
    check_positive('rope_theta', rotary.get('rope_theta'))
    sections = rotary.get('mrope_section')
    if not isinstance(sections, list) or not sections or not all(
            type(part) is int and part >= 0 for part in sections):
        raise CheckpointError(f'mrope_section must be a list of whole numbers, not {sections!r}')
    half, rest = divmod(getattr(text, 'head_dim', None)
                        or text.hidden_size // text.num_attention_heads, 2)
    if rest or sum(sections) != half:
        raise CheckpointError(f'mrope_section {sections} adds up to {sum(sections)}, not to '
                              f'{half + rest / 2:g}, half the size of a head')
