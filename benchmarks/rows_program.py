"""Rows about the program."""
from benchmarks.sizes import Options
from benchmarks.measure import Row
def _later(options: Options) -> Row: raise NotImplementedError
text_to_image = load_memory = import_webui = first_page = around_sampler = _later
