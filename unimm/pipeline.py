"""Everything a user does with a model: draw, chat, ask, verify, encode, decode, load, save.

Shape legend:
    B batch      K pictures      N latent tokens      D latent channels
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unimm.batching import batched, exact_batch_size
from unimm.chat import ChatTemplate
from unimm.checkpoint import save_checkpoint
from unimm.device import check_generation_memory
from unimm.drawing import Progress, count_steps, read_prompts
from unimm.errors import LatentsError, UserError
from unimm.fingerprint import latent_space_id
from unimm.generation import Generation, Stopwatch, draw_pictures
from unimm.image import images_to_pixels, pixels_to_images
from unimm.loading import LoadOptions, load
from unimm.messages import Message, read_messages
from unimm.model import UniMM
from unimm.options import GenerationOptions, TextOptions, VerifierName, check_text
from unimm.picture_sources import SourceOptions
from unimm.quantize import Quantization, is_quantized
from unimm.reader import Reader
from unimm.session import ChatSession, Picture, Reply
from unimm.sight import decode_latents, encode_pixels, see_images, see_latents
from unimm.tokenizer import decode_text
from unimm.verify import build_verifier, verifier_sequence


class Pipeline:
    """A model with its tokenizer, ready to use.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        space: Identifier of the latent space it draws in; computed from the encoder when None.
        card: Its model card.
    """

    def __init__(
        self,
        model: UniMM,
        tokenizer: PreTrainedTokenizerFast,
        *,
        space: str | None = None,
        card: str = "# A unimm model\n",
    ) -> None:
        self.model = model.eval()
        self.reader = Reader(model, ChatTemplate(tokenizer, model.config.chat))
        self.space = space or latent_space_id(model)
        self.card = card

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        devices: Mapping[str, str | torch.device] | None = None,
        quantize: Quantization | None = None,
        offload: bool = False,
    ) -> "Pipeline":
        """Load a model: one of ours, or Scale-RAE's as it was released.

        Args:
            name: A directory or hub id; None for the small model in the package.
            device: See, as the others, :class:`unimm.loading.LoadOptions`.
            dtype: Of parameters and matrix products, whatever the files hold.
            devices: Other devices for parts.
            quantize: ``8bit`` or ``4bit`` for the language model's matrices.
            offload: Keep tower and decoder on the CPU while they are not in use.

        Raises:
            CheckpointError: There is no such model, or its files are incomplete or corrupt.
            UserError: The device is unknown, or the model does not fit into its memory.
        """
        options = LoadOptions(
            device=device, dtype=dtype, devices=devices or {}, quantize=quantize, offload=offload
        )
        loaded = load(name, options)
        return cls(loaded.model, loaded.tokenizer, space=loaded.space, card=loaded.card)

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the model into a directory, whole or not at all.

        Args:
            directory: Where; one that exists is replaced.
            dtype: Store the weights in this type; as they are when None.

        Raises:
            UserError: The language model was quantised.
        """
        if is_quantized(self.model.language):
            raise UserError("a quantised model cannot be stored; load it without quantize first")
        save_checkpoint(
            Path(directory),
            self.model,
            self.reader.template.tokenizer,
            readme=self.card,
            space=self.space,
            dtype=dtype,
        )

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Tokens and channels of a picture's latents, (N, D)."""
        latents = self.model.config.latents
        return latents.num_tokens, latents.dim

    def generate(
        self,
        prompts: str | Sequence[str],
        options: GenerationOptions | None = None,
        *,
        first_index: int = 0,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """Draw a picture for each prompt: the best of ``options.best_of`` candidates.

        Args:
            prompts: One prompt or several; its position is part of a prompt's seeds.
            options: How to draw.
            first_index: Position of the first prompt in a longer list that is drawn piece by piece.
            progress: See :data:`unimm.drawing.Progress`.

        Raises:
            UserError: A prompt is empty, no text or too long, an option is not for this model, or
                there is too little memory.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        chosen = self.model.config.resolve(options)
        for prompt in prompts:
            self._check_prompt(prompt, chosen.verifier)
        check_generation_memory(self.model, len(prompts) * chosen.best_of, chosen.batch_size)
        on_step = count_steps(progress, len(prompts) * chosen.best_of * chosen.num_steps)
        size = exact_batch_size(chosen.batch_size, self.model.device, self.model.dtype)
        generations: list[Generation] = []
        for group in batched(prompts, max(1, size // chosen.best_of)):
            watch = Stopwatch(self.model.device)
            with watch.phase("prompt"):
                index = first_index + len(generations)
                tasks = read_prompts(self.reader, group, first_index=index, batch_size=size)
            generations += draw_pictures(self.reader, tasks, chosen, watch, on_step=on_step)
        return generations

    def chat(
        self, options: GenerationOptions | None = None, text_options: TextOptions | None = None
    ) -> ChatSession:
        """Return a new conversation."""
        return ChatSession(
            self.reader,
            options=self.model.config.resolve(options),
            text_options=text_options or TextOptions(),
            encode=self.latents_of,
        )

    def answer(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: GenerationOptions | None = None,
        text_options: TextOptions | None = None,
        *,
        sources: SourceOptions | None = None,
    ) -> Reply:
        """Return the reply to a conversation in the message format of Qwen and OpenAI.

        Args:
            messages: See :mod:`unimm.messages`.
            options: How pictures are drawn.
            text_options: How text is written.
            sources: Which pictures may be read; files but not URLs when None.

        Raises:
            UserError: A message is malformed or does not fit into the model's context.
            ImageError: A picture cannot be read, or may not be.
        """
        conversation = self.read_messages(messages, sources)
        return self.chat(options, text_options).answer(conversation)

    def read_messages(
        self, messages: Sequence[Mapping[str, Any]], sources: SourceOptions | None = None
    ) -> list[Message]:
        """Return a conversation with its pictures read; arguments as in :meth:`answer`."""
        patch_size = self.model.config.seen.patch_size
        return read_messages(messages, sources or SourceOptions(), patch_size=patch_size)

    def ask(self, picture: Picture, question: str, options: TextOptions | None = None) -> str:
        """Return the model's answer to a question about a picture."""
        return self.ask_many([picture], [question], options)[0]

    @torch.no_grad()
    def ask_many(
        self,
        pictures: Sequence[Picture],
        questions: Sequence[str],
        options: TextOptions | None = None,
        *,
        batch_size: int = 32,
    ) -> list[str]:
        """Return the answers to one question about each picture, in batches."""
        if len(pictures) != len(questions):
            raise UserError(f"got {len(pictures)} pictures for {len(questions)} questions")
        template = self.reader.template
        for question in questions:
            check_text("question", question)
            self.reader.check_prompt(question, template.ask(question))
        answers: list[str] = []
        for chunk in batched(list(zip(pictures, questions, strict=True)), batch_size):
            latents = self.latents_of([picture for picture, _ in chunk])
            images = latents.to(self.model.device, self.model.dtype)
            state = self.reader.read([template.ask(question) for _, question in chunk], images)
            written = self.reader.write(state, options or TextOptions())
            answers += [decode_text(template.tokenizer, tokens).strip() for tokens in written]
        return answers

    def verify(
        self,
        prompt: str,
        pictures: Sequence[Picture] | Tensor,
        *,
        verifier: VerifierName | None = None,
        batch_size: int = 32,
    ) -> list[float]:
        """Return how well each picture matches the prompt, in natural-log units.

        Args:
            prompt: What the pictures should show.
            pictures: Images or latents.
            verifier: How they are scored; the model's default when None. ``yes_no`` gives log-odds.
            batch_size: Most of them to read at once.
        """
        name = verifier or self.model.config.sampling.verifier
        check_text("prompt", prompt)
        self.reader.check_prompt(prompt, verifier_sequence(name, self.reader, prompt))
        latents = self.latents_of(pictures)
        scores = build_verifier(name, self.reader, batch_size=batch_size).score(prompt, latents)
        return [float(score) for score in scores]

    def latents_of(self, pictures: Sequence[Picture] | Tensor) -> Float[Tensor, "K N D"]:
        """Return pictures as the language model reads them, on the CPU in float32.

        Latents of this model are read as they are, or by way of pixels where it cannot read what
        it draws.

        Raises:
            LatentsError: A tensor has not the shape of this model's latents.
        """
        if not len(pictures):
            raise UserError("there is no picture to look at; give at least one")
        return torch.stack(
            [
                see_latents(self.model, self._check_latents(picture)[None])[0]
                if isinstance(picture, Tensor)
                else see_images(self.model, [picture])[0]
                for picture in pictures
            ]
        )

    def encode(self, images: Sequence[Image.Image]) -> Float[Tensor, "B N D"]:
        """Return images as latents that :meth:`decode` takes, cropped to the model's square."""
        size = self.model.config.latents.image_size
        return encode_pixels(self.model, images_to_pixels(images, size=size))

    def decode(self, latents: Float[Tensor, "B N D"]) -> Float[Tensor, "B 3 height width"]:
        """Return the pixels of latents, RGB in [0, 1]."""
        return decode_latents(self.model, torch.stack([self._check_latents(x) for x in latents]))

    def decode_images(self, latents: Float[Tensor, "B N D"]) -> list[Image.Image]:
        """Return the pictures of latents."""
        return pixels_to_images(self.decode(latents))

    def _check_latents(self, latents: Tensor) -> Float[Tensor, "N D"]:
        if tuple(latents.shape) != self.latent_shape:
            raise LatentsError(
                f"latents of a picture must have shape {self.latent_shape}, got "
                f"{tuple(latents.shape)}; they belong to another latent space than {self.space}"
            )
        return latents.float().cpu()

    def _check_prompt(self, prompt: str, verifier: VerifierName) -> None:
        check_text("prompt", prompt)
        self.reader.check_prompt(
            prompt,
            self.reader.template.draw(prompt),
            verifier_sequence(verifier, self.reader, prompt),
        )
