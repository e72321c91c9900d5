"""The task `arithmetic-reworded`: trained as `arithmetic` is, and asked in words that training never shows.

The operand pairs are held out as there. What a model understands of the new words it has from elsewhere.
"""

from llm_modules.tasks.arithmetic import Arithmetic
from llm_modules.tasks.wordings import REWORDED

TASK = Arithmetic("arithmetic-reworded", asked=REWORDED)
