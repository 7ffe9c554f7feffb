"""What a model costs: `profile` for one record, `counters` and `latency` for the parts."""
from .counters import count_macs as count_macs
from .counters import count_traffic as count_traffic
from .counters import on_meta as on_meta
from .handles import fvcore_handles as fvcore_handles
from .latency import take_turns as take_turns
from .report import Profile as Profile
from .report import profile as profile
