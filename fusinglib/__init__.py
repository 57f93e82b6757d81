"""Can the finetuned models that already exist be turned into a better base model?"""

from fusinglib.errors import InputError as InputError
