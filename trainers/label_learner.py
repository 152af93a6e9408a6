"""Stage I of SPG and of DPSPG: what both do beside what they learn."""

from pathlib import Path

from torch import Tensor

from common.errors import UserError
from common.files import make_output_folder
from common.held import held
from trainers.base.trainer import FrozenClipTrainer
from trainers.modules.prompt_labels import save_prompt_label
from trainers.spg_labels import label_folder, label_origin


class LabelLearner(FrozenClipTrainer):
    """Base class of what learns on one domain; what the best validation epoch has learned is written as its labels."""

    LABEL_SIGNS: tuple[str, ...] = ("",)  # of the labels; who finds that of the last has all

    def learned_label(self, sign: str) -> Tensor:
        """The label (n_ctx, D) of a sign."""
        raise NotImplementedError

    def label_files(self) -> dict[str, Path]:
        """Where the labels are written, by sign."""
        (domain,) = self.dm.dataset.source_domains
        return {sign: label_folder(self.cfg, self.SETTINGS, sign).file_for(domain) for sign in self.LABEL_SIGNS}

    def build_data_loader(self) -> None:
        super().build_data_loader()
        domains = self.dm.dataset.source_domains
        if self.classnames is None and len(domains) != 1:
            what = "prompt label" if len(self.LABEL_SIGNS) == 1 else "prompt labels"
            raise UserError(
                f"{type(self).__name__} learns the {what} of one domain; DATASET.SOURCE_DOMAINS names {len(domains)}: "
                f"{', '.join(domains)}. Pass one (--source-domains {domains[0]}), or use --trainer {self.SETTINGS}, "
                "which trains the labels of all source domains."
            )

    def train(self) -> None:
        # As for both stages in one run, so that of all processes one at a time learns a label.
        *_, last = self.label_files().values()
        make_output_folder(label_folder(self.cfg, self.SETTINGS, "").label_dir)
        with held(last, f"the prompt label of {last.stem}"):
            super().train()

    def after_train(self) -> None:
        super().after_train()
        if self.cfg.TEST.FINAL_MODEL == "best_val":
            self.load_model(self.output_dir)
        origin = label_origin(self, self.dm.dataset.train_x, self.cfg)
        for sign, path in self.label_files().items():
            save_prompt_label(path, self.learned_label(sign), origin, self.course.train_seconds)
            print(f"Prompt label written to {path}")
