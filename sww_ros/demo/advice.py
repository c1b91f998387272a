"""What the demo asks and says beforehand, by what the model can see and read."""

from __future__ import annotations

from sww_ros.demo.options import Options
from sww_ros.shapes import questions

GENERIC_QUESTIONS = ('What do you see?', 'How many things are there?', 'What moved last?')
BUILTIN_QUESTIONS = ('How many shapes are there?', 'Which shape moved last?',
                     'Is there a red circle?')

KNOWS = ('the built-in model knows coloured shapes on plain ground and nothing else: of any other '
         'video it tells of shapes that are not there; give a model of your own with --model PATH')


def own_questions(options: Options) -> tuple[str, ...]:
    """Return what is asked of a video: the user's questions, or some that the model can read."""
    if options.questions is not None:
        return options.questions
    return BUILTIN_QUESTIONS if options.is_builtin else GENERIC_QUESTIONS


def advice(options: Options) -> list[str]:
    """Return what the user should know before the run, line by line."""
    if not options.is_builtin:
        return []
    unread = [text for text in options.questions or () if not questions.is_known(text)]
    return [KNOWS] * bool(options.video) + [_of_unread(unread)] * bool(unread)


def strange_picture(difference: str) -> str:
    """Return the warning for a picture that is unlike the built-in model's world, and in what."""
    return f'this picture is unlike its world: {difference}. What is said of it is made up'


def unread_note(options: Options, question: str) -> str:
    """Return the remark after the answer to a question that the model cannot read, or nothing."""
    return 'not taught to read this' if options.is_builtin and not questions.is_known(
        question) else ''


def _of_unread(texts: list[str]) -> str:
    quoted = ', '.join(f'"{text}"' for text in texts)
    return (f'the built-in model was not taught to read {quoted}: expect nonsense or nothing. It '
            f'reads: {" ".join(questions.EXAMPLES)}')
