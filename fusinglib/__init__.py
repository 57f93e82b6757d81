"""Can the finetuned models that already exist be turned into a better base model?"""

from fusinglib.errors import InputError as InputError
from fusinglib.fusion.engine import fuse as fuse
from fusinglib.fusion.engine import leave_one_out as leave_one_out
