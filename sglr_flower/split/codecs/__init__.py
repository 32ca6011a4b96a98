"""Wire codecs: smashed data and cut gradients made smaller before they travel, and what the other side computes with.

========================  ============================================================================================
none                      as computed; costs nothing
bfloat16, float16         rounded to 16 bits; float16 ends at ±65,504, to which larger values are cut off
int8, int8-channel        8 bits: x ~ scale * q with whole q in -127..127 and scale = max|x| / 127 of one sample, or of
                          each channel of one sample
topk:F                    the fraction F of a sample's values that are largest in magnitude, and where they lie
randtopk:F:A              the same number of them, drawn without replacement: each draw is of the largest with
                          probability 1 - A, of the tail with A, and even within both; a score is taken with topk:F.
                          Zheng et al., "Reducing Communication for Split Learning by Randomized Top-k Sparsification",
                          arXiv 2305.18469
========================  ============================================================================================

Everything is made sample by sample (of SplitAvg's average: position by position), so what comes out does not depend on
how samples are grouped into batches, nodes and frames.

There is no error feedback, the memory of what was left out that is added to the next message. It corrects a sum to
which every message contributes, such as a weight's gradients over the steps of a run. Rows of smashed data and of cut
gradients are of other images in every step, and what was left out of one image's is no part of another's.

One's own is a `Codec` by its import path: ``wire-up = "package.module:name"``.
"""

from sglr_flower.split.codecs.codec import NOT_FINITE, Codec, Coded, Form, Part, StandardCodec
from sglr_flower.split.codecs.names import get, is_own, parse
from sglr_flower.split.codecs.rounded import OFF
from sglr_flower.split.codecs.trial import refusal

__all__ = [
    "NOT_FINITE",
    "OFF",
    "Codec",
    "Coded",
    "Form",
    "Part",
    "StandardCodec",
    "get",
    "is_own",
    "parse",
    "refusal",
]

Codec.__module__ = __name__  # where one's own imports it from, and sentences name it
