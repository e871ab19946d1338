"""``compactor verify``: is an artefact still what its checkpoint computes?"""

from __future__ import annotations

from pathlib import Path

import click

from compactor import commands
from compactor.console import Console, Section
from compactor.errors import VerificationError
from compactor.exporting.summary import verification_section
from compactor.manifest import artefact_file_problems, load_manifest, source_file_problems


@click.command(short_help="Check an artefact against its checkpoint again.")
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.argument("model_dir", type=click.Path(path_type=Path))
@commands.allow_pickle_option
@commands.json_option
@commands.verbosity_options
@commands.debug_option
def command(out_dir: Path, model_dir: Path, allow_pickle: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Check the artefact OUT_DIR against the checkpoint MODEL_DIR that it was made from.

    First that both hold the very files that the manifest names, then that the models compute the same numbers.
    """
    commands.refuse_both(quiet, verbose)
    manifest = load_manifest(out_dir)
    commands.require_model_dir(model_dir)
    commands.require_compiler("compactor verify")
    console = Console(quiet=quiet, verbose=verbose)
    with console.working() as progress:
        progress("comparing files")
        _require_none(artefact_file_problems(manifest, out_dir), "the artefact was changed", out_dir)
        _require_none(source_file_problems(manifest, model_dir), "made from other files", model_dir)
        progress("loading libraries")
        from compactor.exporting.verifying import verify

        verification = verify(out_dir, model_dir, allow_pickle=allow_pickle, progress=progress)
    if as_json:
        console.document(verification)
    else:
        said = f"{out_dir} was made from {model_dir}, and computes the same"
        console.show(Section(lines=[said]), verification_section(verification))


def _require_none(problems: list[str], meaning: str, folder: Path) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise VerificationError(
            f"{meaning}: {problems[0]}{more}", where=str(folder), todo="export the model again, with --overwrite"
        )
