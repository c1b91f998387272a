"""
Writes expected.json: what public implementations say about fixed sentences.

In an environment of its own, with Java for the tokenizer and the jar:
`pip install pycocoevalcap==1.2 nltk==3.10.4 sacrebleu==2.6.0 && python make.py`
"""

from importlib.metadata import version
import json
from pathlib import Path
from statistics import fmean

from nltk.translate.meteor_score import meteor_score
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from sacrebleu.metrics import BLEU

# (hypothesis, references) in lower case without punctuation: no tokenizer has a say in these.
CORPORA = {
    'one reference each': [
        ('a red circle moves to the left', ['the red circle moves left']),
        ('the blue square stops near the edge', ['a blue square stops at the edge']),
        ('a yellow triangle appears', ['a yellow triangle appears in the corner']),
    ],
    'several references': [
        ('a man is playing a guitar on stage',
         ['a man plays the guitar on a stage', 'someone is playing guitar',
          'the musician performs on stage with his guitar']),
        ('two dogs run across the green field',
         ['two dogs are running through a field', 'dogs run across the grass']),
        ('a woman slices an onion',
         ['a woman is cutting an onion', 'a lady slices onions', 'the woman slices an onion',
          'someone chops vegetables']),
    ],
    'the same': [
        ('the cat sits on the mat and looks out', ['the cat sits on the mat and looks out']),
        ('rain falls on the empty street', ['rain falls on the empty street']),
    ],
    'no word in common': [
        ('green ideas sleep', ['the man opens a door']),
        ('furious clouds', ['she pours water into a glass']),
    ],
    'an empty hypothesis': [
        ('', ['the boy kicks the ball']),
        ('the girl catches the ball', ['the girl catches a ball']),
    ],
    'nothing but empty hypotheses': [
        ('', ['the boy kicks the ball']),
        ('', ['the girl catches a ball', 'a girl']),
    ],
    'one word': [
        ('ball', ['ball']),
        ('run', ['running']),
        ('car', ['a car']),
    ],
    'two and three words': [
        ('a dog', ['a dog', 'the dog']),
        ('a dog barks', ['a dog barks loudly', 'dog barks']),
        ('dog a', ['a dog']),
    ],
    'repeated words': [
        ('the the the the the the the', ['the cat is on the mat', 'there is a cat on the mat']),
        ('he runs and runs and runs', ['he runs and runs', 'and he runs and he runs']),
        ('go go go', ['go team go']),
    ],
    'the same stems': [
        ('the runner was running quickly', ['runners run quick']),
        ('children played happily in gardens', ['a child plays happy in the garden']),
        ('he watches the flying birds', ['he watched the birds fly']),
    ],
    'another order': [
        ('on the mat sat the cat', ['the cat sat on the mat']),
        ('left moves circle red the', ['the red circle moves left']),
    ],
    'too long': [
        ('a man in a blue shirt and a black hat walks slowly along the long sandy beach with his '
         'small brown dog while the sun sets behind the hills', ['a man walks his dog']),
        ('first the player passes the ball then the player runs then the player shoots and then '
         'the crowd cheers', ['the player shoots', 'the crowd cheers as the player shoots']),
    ],
    'too short': [
        ('a man walks', ['a man in a blue shirt walks slowly along the beach with his brown dog']),
        ('goal', ['the striker scores a goal in the last minute of the match', 'what a goal']),
    ],
    'one document': [
        ('a bird sings in the tree', ['a bird is singing in a tree', 'the bird sings']),
    ],
    'two references of equal distance': [
        ('one two three four five', ['one two three four', 'one two three four five six']),
        ('one two three', ['one two', 'one two three four']),
    ],
}

TEXTS = [
    "A man in a T-shirt doesn't run; he can't.",
    "It's 3:30, and they're here: we'll go -- now...",
    'He says "hello" at 1,000 o\'clock!',
    'The players’ coach won’t speak “today” – ok?',
    "The dog's ball costs 5.50, not 6.",
    "I'd say he's well-known, I'm sure; you've seen 'him'.",
    'a café in São Paulo',
    '',
    '...',
]


class NoSynonyms:
    """Stands in for WordNet."""

    def synsets(self, word: str) -> list:
        return []


def corpus_scores(corpus: list[tuple[str, list[str]]]) -> dict[str, float]:
    """What the packages say, times 100."""
    said = {i: [hypothesis] for i, (hypothesis, _) in enumerate(corpus)}
    truth = {i: references for i, (_, references) in enumerate(corpus)}
    orders, _ = Bleu(4).compute_score(truth, said, verbose=0)
    meteor = fmean(meteor_score([r.split() for r in references], hypothesis.split(),
                                wordnet=NoSynonyms()) for hypothesis, references in corpus)
    scores = {'CIDEr': Cider().compute_score(truth, said)[0], 'BLEU-1': orders[0],
              'BLEU-4': orders[3], 'METEOR': meteor,
              'ROUGE-L': Rouge().compute_score(truth, said)[0]}
    return {name: 100 * float(value) for name, value in scores.items()}


def sacrebleu_score(corpus: list[tuple[str, list[str]]]) -> float:
    """What sacrebleu says, 0 to 100; it wants as many references for each."""
    most = max(len(references) for _, references in corpus)
    columns = [[references[i] if i < len(references) else None for _, references in corpus]
               for i in range(most)]
    return BLEU(tokenize='none', smooth_method='none').corpus_score(
        [hypothesis for hypothesis, _ in corpus], columns).score


def jar(corpus: list[tuple[str, list[str]]], program: Meteor) -> float:
    """What meteor-1.5.jar says, times 100: another metric, kept to show how far off it is."""
    return 100 * program.compute_score({i: r for i, (_, r) in enumerate(corpus)},
                                       {i: [h] for i, (h, _) in enumerate(corpus)})[0]


def main() -> None:
    """Compute everything and write it."""
    program = Meteor()
    cases = []
    for name, corpus in CORPORA.items():
        cases.append(dict(
            name=name, hypotheses=[h for h, _ in corpus], references=[r for _, r in corpus],
            expected=corpus_scores(corpus), sacrebleu=sacrebleu_score(corpus),
            meteor_jar=jar(corpus, program)))
    split = PTBTokenizer().tokenize({i: [{'caption': t}] for i, t in enumerate(TEXTS)})
    packages = {name: version(name) for name in ('pycocoevalcap', 'nltk', 'sacrebleu')}
    Path(__file__).with_name('expected.json').write_text(json.dumps(dict(
        packages=packages, corpora=cases,
        words=[dict(text=text, expected=split[i][0].split()) for i, text in enumerate(TEXTS)],
    ), indent=1, ensure_ascii=False) + '\n')


if __name__ == '__main__':
    main()
