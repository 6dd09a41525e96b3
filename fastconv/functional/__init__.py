"""One function per operation. Each checks its arguments, plans, allocates the result and runs."""

from fastconv.functional import adaptive_pool, avg_pool, conv, conv_transpose, lowering, max_pool, plans
from fastconv.functional.adaptive_pool import *
from fastconv.functional.avg_pool import *
from fastconv.functional.conv import *
from fastconv.functional.conv_transpose import *
from fastconv.functional.lowering import *
from fastconv.functional.max_pool import *
from fastconv.functional.plans import *

__all__: list[str] = []
__all__ += adaptive_pool.__all__
__all__ += avg_pool.__all__
__all__ += conv.__all__
__all__ += conv_transpose.__all__
__all__ += lowering.__all__
__all__ += max_pool.__all__
__all__ += plans.__all__
