"""`proxlm sft`: fine-tune a model on prompts with responses, or on conversations."""

from __future__ import annotations

from proxlm.apps.pretrain import SupervisedResult, print_result, run_supervised
from proxlm.apps.session import model_context, set_up
from proxlm.config import SFTJob
from proxlm.data.chat import read_template
from proxlm.data.supervised import sft_examples
from proxlm.data.text import split_validation
from proxlm.data.tokenizer import load_tokenizer
from proxlm.models.load import load_language_model
from proxlm.train.examples import Examples


def main(config: SFTJob) -> None:
    """Run the job and print where everything is."""
    print_result(run_sft(config), config.run)


def run_sft(config: SFTJob) -> SupervisedResult:
    """Fine-tune as configured: only response tokens (the assistant's turns) have a loss. Raises UserError."""
    set_up(config.run.seed, config.run.threads)
    tokenizer = load_tokenizer(config.model.policy, config.model.trust_remote_code)
    limit = model_context(config.model) or 2**31
    train = sft_examples(config.text, config.text.train, tokenizer, limit)
    if config.text.validation:
        validation = sft_examples(config.text, config.text.validation, tokenizer, limit)
    else:
        train, validation = split_validation(train, config.text.validation_share, config.run.seed)
    model = load_language_model(config.model)
    if config.text.chat_template:
        # The saved model then speaks the way it was taught.
        model.tokenizer.chat_template = read_template(config.text.chat_template)
    return run_supervised("sft", config, model, Examples(train), Examples(validation))
