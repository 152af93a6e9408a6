"""SPG, stage I: the prompt label of a source domain, learned by CoOp on that domain alone (SPG, Sec. 3.2)."""

from dassl.engine import TRAINER_REGISTRY

from trainers.base.context_trainer import ContextTrainer
from trainers.modules.prompt_labels import save_prompt_label
from trainers.spg_labels import check_one_domain, label_folder, label_origin


@TRAINER_REGISTRY.register()
class SPG_CoOp(ContextTrainer):
    """CoOp on one domain; the context of its best validation epoch is written as the domain's prompt label."""

    SETTINGS = "SPG"

    def build_data_loader(self) -> None:
        super().build_data_loader()
        check_one_domain(self, "prompt label", "SPG")

    def after_train(self) -> None:
        super().after_train()
        if self.cfg.TEST.FINAL_MODEL == "best_val":
            self.load_model(self.output_dir)
        path = label_folder(self.cfg).file_for(self.dm.dataset.source_domains[0])
        origin = label_origin(self, self.dm.dataset.train_x, self.cfg)
        save_prompt_label(path, self.model.ctx, origin, self.course.train_seconds)
        print(f"Prompt label written to {path}")
