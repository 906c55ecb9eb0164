"""What the C and C++ hosts are compared with: the Python runtime's greedy tokens and text of a model folder.

hosts_reference.py DIR OUT    write OUT/prompt.txt, OUT/ids.txt and, for each kernel, OUT/KERNEL.tokens and OUT/KERNEL.txt
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fairy2i_runtime

PROMPT = "Once upon a time, there was a little girl named Lily"
NEW_TOKENS = 256
AT_LEAST = 200  # of them have to be there to compare
KERNELS = ("exact", "lut")


def main() -> None:
    """Write the files."""
    folder, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    (out / "prompt.txt").write_text(PROMPT)
    for kernel in KERNELS:
        model = fairy2i_runtime.load(folder, threads=1, kernel=kernel)
        ids = model.tokenizer.encode(PROMPT)
        result = model.generate(ids, max_new_tokens=NEW_TOKENS)
        assert len(result.token_ids) >= AT_LEAST, len(result.token_ids)
        (out / "ids.txt").write_text(" ".join(map(str, ids)))
        (out / f"{kernel}.tokens").write_text("".join(f"{token}\n" for token in result.token_ids))
        command = [sys.executable, "-m", "fairy2i_runtime", "generate", folder, PROMPT, "--kernel", kernel, "--threads", "1"]
        told = subprocess.run([*command, "--max-new-tokens", str(NEW_TOKENS)], capture_output=True, check=True).stdout
        assert told.decode() == result.text + "\n"
        (out / f"{kernel}.txt").write_bytes(told)
        print(f"{kernel}: {len(result.token_ids)} tokens")


if __name__ == "__main__":
    main()
