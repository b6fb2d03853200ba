"""The peers, their versions, and what each of them does not do."""

from __future__ import annotations

from parts.peers import Peer

_PEERS = (
    Peer(
        name="torchdistill",
        title="torchdistill 1.1.5",
        does="one training",
        lacks="its example script, which trains, is in the repository alone; the teacher runs in "
        "every step, and every epoch decodes the files again; images that the teacher takes "
        "otherwise are code of one's own; no search",
        accuracy=r"Acc@1 ([\d.]+)",
        scale=0.01,
        needs="torchdistill/examples/torchvision/image_classification.py",
        stand_in="torchdistill_loop.py",
    ),
    Peer(
        name="timm",
        title="timm 1.0.29, `train.py --kd-model-name`",
        does="one training",
        lacks="train.py is in the repository alone; teacher and student must be in timm's "
        "registry, the teacher's weights come from its own function; the teacher runs in every "
        "step, normalised as it says but on the student's size; another augmentation (crops of 90 "
        "to 100 %), as it has no crop with a repeated border; no search",
        accuracy=r"Acc@1: +[\d.]+ \( *([\d.]+)\)",
        scale=0.01,
        needs="pytorch-image-models/train.py",
        stand_in="timm_task.py",
        stand_in_trains=False,
    ),
    Peer(
        name="krscale_distill",
        title="`krscale distill`",
        does="one training",
        lacks="every start imports Ray and MLflow, and no student trains before the teacher's "
        "store is written",
        accuracy=r"│ +([\d.]+)% +│ +[\d.]+% +│\n",
        scale=0.01,
    ),
    Peer(
        name="ray_tune",
        title="a script for Ray Tune 2.60.0, with OptunaSearch and ASHA",
        does="8 trials",
        lacks="everything but the search is code of one's own; the teacher runs in every step of "
        "every trial, and every epoch decodes the files again, as `ImageFolder` does; the best "
        "trial itself is tested, so no fresh seed; what it records is Ray's own, without MLflow, "
        "figures or an export",
        accuracy=r"test accuracy ([\d.]+)",
    ),
    Peer(
        name="krscale_tune",
        title="`krscale tune`",
        does="8 trials, the winner again with a fresh seed",
        lacks="the same; a ninth training, as what is tested is one with a fresh seed",
        accuracy=r"small +[\d.]+k +[\d.]+k +[\d.]+ +([\d.]+)",
        scale=0.01,
    ),
)
PEERS_BY_NAME = {peer.name: peer for peer in _PEERS}
