"""Where the files of a folder are kept: all that is read from or written to a trial's folder goes
through a `Store`.

`LocalDisk` keeps them on a disk with file locks, `SharedDisk` on a disk of several machines with
leases, and `ObjectStore` in an object store. What the files are called and what they hold is for
`testbed.trial.folders`.
"""

from testbed.trial.storage.base import Busy as Busy
from testbed.trial.storage.base import LeaseLost as LeaseLost
from testbed.trial.storage.base import Store as Store
from testbed.trial.storage.base import StoreAway as StoreAway
from testbed.trial.storage.base import answering as answering
from testbed.trial.storage.leases import Claim as Claim
from testbed.trial.storage.leases import Leased as Leased
from testbed.trial.storage.local_disk import LocalDisk as LocalDisk
from testbed.trial.storage.places import address as address
from testbed.trial.storage.places import begin as begin
from testbed.trial.storage.places import local as local
from testbed.trial.storage.places import network as network
from testbed.trial.storage.places import opened as opened
from testbed.trial.storage.places import url_of as url_of
from testbed.trial.storage.shared_disk import SharedDisk as SharedDisk
