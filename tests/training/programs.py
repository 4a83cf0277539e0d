"""Scripts in a folder of their own, with stand-ins for what they start."""


def write_programs(folder, programs):
    """Texts by path, made executable."""
    for name, text in programs.items():
        program = folder / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
