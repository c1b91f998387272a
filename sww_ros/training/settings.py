"""How the trained checkpoint will stream and see, which is also how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sww_ros.streaming.checkpoint import Checkpoint, StreamDefaults
from sww_ros.streaming.perception import PixelSettings
from sww_ros.training.recipe import Recipe, streaming_words


@dataclass(frozen=True)
class Settings:
    """The checkpoint's own settings, with what the recipe changes."""

    defaults: StreamDefaults
    pixels: PixelSettings

    @staticmethod
    def of(about: Checkpoint, recipe: Recipe) -> Settings:
        """
        Put a checkpoint's settings and a recipe together.

        :raises ValueError: for pixels that the checkpoint cannot take
        """
        own, pixels = about.defaults, about.perception.settings
        defaults = replace(
            own, position_encoding=recipe.position_encoding, position_gap=recipe.position_gap,
            schedule=recipe.schedule, wait_k=recipe.wait_k,
            seconds_per_step=pixels.temporal_patch_size / recipe.fps,
            system=recipe.system or own.system, prompt=recipe.prompt or own.prompt,
            max_steps=recipe.max_steps or own.max_steps)
        if recipe.max_pixels:
            least = pixels.unit ** 2
            if recipe.max_pixels < least:
                raise ValueError(f'max_pixels must be at least {least}, one visual token, not '
                                 f'{recipe.max_pixels}')
            pixels = replace(pixels, max_pixels=recipe.max_pixels,
                             min_pixels=min(pixels.min_pixels, recipe.max_pixels))
        return Settings(defaults, pixels)

    def entry(self) -> dict:
        """The `speak_while_watching` entry of the trained checkpoint's config."""
        d = self.defaults
        entry = dict(position_encoding=d.position_encoding, schedule=d.schedule, wait_k=d.wait_k,
                     seconds_per_step=d.seconds_per_step, system=d.system, prompt=d.prompt,
                     max_steps=d.max_steps)
        if d.position_encoding == 'gipe':
            entry['position_gap'] = d.position_gap
        return entry


def own_words(about: Checkpoint) -> dict[str, str]:
    """Return `streaming_words` of a checkpoint that was trained to stream; {} for any other."""
    if not about.trained:
        return {}
    own, per_step = about.defaults, about.perception.settings.temporal_patch_size
    return streaming_words(own.position_encoding, own.position_gap, own.schedule, own.wait_k,
                           per_step / own.seconds_per_step)
