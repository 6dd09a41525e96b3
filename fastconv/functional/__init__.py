"""One function per operation. Each checks its arguments, plans, allocates the result and runs."""

from fastconv.functional.adaptive_pool import *
from fastconv.functional.avg_pool import *
from fastconv.functional.conv import *
from fastconv.functional.conv_grads import *
from fastconv.functional.conv_integer import *
from fastconv.functional.conv_transpose import *
from fastconv.functional.deform_conv import *
from fastconv.functional.lowering import *
from fastconv.functional.lp_pool import *
from fastconv.functional.max_pool import *
from fastconv.functional.max_unpool import *
from fastconv.functional.packed_weight import *
from fastconv.functional.plans import *
from fastconv.functional.prepack import *
