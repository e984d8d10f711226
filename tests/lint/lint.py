#!/usr/bin/env python3
"""The tree's own rules, as a test: who may include whom, sizes, what a core may call.

usage: lint.py ROOT          checks the tree, one line per finding, exit 1 if any
       lint.py --self-test   feeds each rule something wrong and fails if the rule stays silent
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

FOLDERS = ["proto", "kernels", "shard", "client", "trainer"]
# Folder -> headers of other folders that it may include (CONTRIBUTING.md "Folders").
MAY_INCLUDE = {
    "proto": set(),
    "kernels": {"mneme_types.h"},
    "shard": {"mneme_types.h", "mn_proto.h", "mn_kernels.h", "mn_kernels_cuda.h"},
    "client": {"mneme_types.h", "mn_proto.h", "mn_kernels.h", "mn_shard.h"},
    "trainer": {"mneme_types.h", "mn_proto.h", "mn_kernels.h", "mn_nn_cuda.h", "mneme.h"},
}
# Vendor header -> files that may include it; elsewhere its types would leak.
VENDORS = [
    (re.compile(r"grpc/|grpc\.h"), re.compile(r"proto/grpc_\w+\.[ch]$")),
    (re.compile(r"protobuf-c|\.pb-c\.h"), re.compile(r"proto/(codec|grpc)_\w+\.[ch]$")),
    (re.compile(r"^uv\.h"), re.compile(r"proto/storage_\w*uv\.[ch]$|client/transport_local\.c$|shard/main\.c$")),
    (re.compile(r"xxhash"), re.compile(r"proto/checksum\.c$")),
    (re.compile(r"cblas|openblas"), re.compile(r"_openblas\.c$")),
    (re.compile(r"^cuda|^nccl"), re.compile(r"kernels/cuda/")),
]
# What a core sees only through mn_env.
CORE_FILES = re.compile(r"^(shard/(?!main\.c|server_)|client/(?!client_api|transport_|cli|example))\w+\.c$")
CORE_CALLS = re.compile(
    r"\b(malloc|calloc|realloc|free|printf|fprintf|puts|exit|abort|getenv|clock_gettime|time|rand|"
    r"fopen|open|pthread_\w+|uv_\w+|usleep|nanosleep)\s*\(")
LIBRARY_CALLS = re.compile(r"\b(printf|puts|exit|getenv)\s*\(")
MARKS = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b|#i" r"f 0\b")
LINE_MAX, FILE_MAX, FUNCTION_MAX, README_MAX = 100, 800, 70, 149
CODE = (".c", ".h", ".cu", ".cuh")
# In a page, `tests/run --quick` or [x](client/mneme.h): what begins with a folder of ours.
PATH_NAMED = re.compile(r"(?:`|\]\()((?:" + "|".join(FOLDERS + ["deploy", "tests"]) + r")/[\w./-]*\w)(?![\w*/])")


def files_of(root):
    listed = subprocess.run(["git", "-C", root, "ls-files"], capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [f for f in listed.stdout.splitlines() if os.path.isfile(os.path.join(root, f))]
    return [os.path.relpath(os.path.join(d, f), root) for d, _, fs in os.walk(root) for f in fs]


def without_comments(text):
    def blank(match):
        return re.sub(r"[^\n]", " ", match.group(0)) if match.group(0)[0] == "/" else match.group(0)
    return re.sub(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', blank, text, flags=re.S)


def check_includes(path, text, headers, findings):
    folder = path.split("/")[0]
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
        if not match:
            continue
        name = match.group(1)
        base = os.path.basename(name)
        owners = headers.get(base, set())
        if folder in FOLDERS and owners and folder not in owners:
            if base not in MAY_INCLUDE[folder]:
                findings.append(f"{path}:{number}: {folder}/ may not include {name}")
        for vendor, allowed in VENDORS:
            if folder in FOLDERS and vendor.search(name) and not allowed.search(path):
                findings.append(f"{path}:{number}: {name} belongs in its adapter file only")


def check_calls(path, text, findings):
    if not path.startswith(tuple(f + "/" for f in FOLDERS)) or not path.endswith(".c"):
        return
    program = re.search(r"(^|/)(main|example|cli\w*|train\w*|server_\w+)\.c$", path)
    pattern = CORE_CALLS if CORE_FILES.match(path) else None if program else LIBRARY_CALLS
    # A string that names a function is no call.
    bare = re.sub(r'"(?:\\.|[^"\\\n])*"', '""', without_comments(text))
    for number, line in enumerate(bare.splitlines(), 1):
        match = pattern and re.search(r"(?<![\w.>])" + pattern.pattern, line)
        if match and not line.lstrip().startswith("#"):
            findings.append(f"{path}:{number}: {match.group(1)}() is the environment's: use mn_env")


def check_sizes(path, text, findings):
    lines = text.splitlines()
    if len(lines) > FILE_MAX:
        findings.append(f"{path}: {len(lines)} lines, at most {FILE_MAX}")
    if path.endswith(CODE):
        for number, line in enumerate(lines, 1):
            if len(line) > LINE_MAX:
                findings.append(f"{path}:{number}: {len(line)} columns, at most {LINE_MAX}")
    for number, line in enumerate(lines, 1):
        if MARKS.search(line):
            findings.append(f"{path}:{number}: unfinished work or dead code is marked here")


def check_functions(root, paths, findings):
    if not shutil.which("ctags"):
        findings.append("ctags is missing: install universal-ctags (deploy/packages lists it)")
        return
    listed = subprocess.run(
        ["ctags", "-x", "--_xformat=%K %F %n %{end} %N", "--kinds-C=f", "--kinds-C++=f",
         "--kinds-CUDA=f", "-L", "-"],
        input="\n".join(paths), capture_output=True, text=True, cwd=root).stdout
    for row in listed.splitlines():
        fields = row.split()
        if len(fields) == 5 and fields[0] == "function":
            length = int(fields[3]) - int(fields[2]) + 1
            if length > FUNCTION_MAX:
                findings.append(f"{fields[1]}:{fields[2]}: {fields[4]} has {length} lines, "
                                f"at most {FUNCTION_MAX}")


def tests_named(text):
    """The last column of tables that end in "test": names of tests, or the beginnings of some."""
    names, named = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 3:
            named = False
        elif cells[-2] == "test":
            named = True
        elif named:
            names += re.findall(r"`(\w+\*?)`", cells[-2])
    return names


def check_tests_named(root, paths, findings):
    """A page that says which test holds a promise is wrong once the test is gone."""
    page = os.path.join(root, "README.md")
    if not os.path.exists(page):
        return
    known = set()
    for path in paths:
        if path.startswith("tests/") and path.endswith("CMakeLists.txt"):
            with open(os.path.join(root, path), encoding="utf-8") as file:
                known.update(re.findall(r"(?:mn_test\(|NAME )\s*([\w${}]+)", file.read()))
    with open(page, encoding="utf-8") as file:
        for name in tests_named(file.read()):
            # a loop's name has a variable in it
            if not any(re.fullmatch(re.sub(r"\$\{\w+\}", r"\\w+", test), name) or
                       name[-1] == "*" and test.startswith(name[:-1]) for test in known):
                findings.append(f"README.md: there is no test {name}")


def check_pages_named(root, paths, findings):
    """Nobody can read a page that is not here, nor run or open what a page names and nobody has."""
    pages = {os.path.basename(path) for path in paths if path.endswith(".md")}
    for path in paths:
        if not path.endswith(CODE + (".py", ".proto", ".md", "CMakeLists.txt")):
            continue
        with open(os.path.join(root, path), encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                findings.extend(f"{path}:{number}: there is no page {name}"
                                for name in re.findall(r"[\w-]+\.md\b", line) if name not in pages)
                named = re.findall(PATH_NAMED, line) if path.endswith(".md") else ()
                findings.extend(f"{path}:{number}: there is no {name}" for name in named
                                if not os.path.exists(os.path.join(root, name)))


def check(root):
    findings = []
    paths = files_of(root)
    headers = {}
    for path in paths:
        if path.endswith(".h"):
            headers.setdefault(os.path.basename(path), set()).add(path.split("/")[0])
    code = [p for p in paths if p.endswith(CODE)]
    for path in paths:
        if path.endswith(CODE + (".py", ".sh", ".proto")) or os.path.basename(path) == "run":
            with open(os.path.join(root, path), encoding="utf-8") as file:
                text = file.read()
            check_sizes(path, text, findings)
            if path in code:
                check_includes(path, text, headers, findings)
                check_calls(path, text, findings)
    check_functions(root, code, findings)
    check_tests_named(root, paths, findings)
    check_pages_named(root, paths, findings)
    readme = os.path.join(root, "README.md")
    if os.path.exists(readme):
        with open(readme, encoding="utf-8") as file:
            count = len(file.readlines())
        if count > README_MAX:
            findings.append(f"README.md: {count} lines, at most {README_MAX}")
    return findings


WRONG = {
    "kernels may not see the client": ("kernels/a.c", '#include "mneme.h"\n', "may not include"),
    "client may not see a shard's private header":
        ("client/a.c", '#include "shard_core.h"\n', "may not include"),
    "gRPC stays in its adapter": ("client/a.c", "#include <grpc/grpc.h>\n", "adapter"),
    "libuv stays in its adapter": ("client/client_api.c", "#include <uv.h>\n", "adapter"),
    "OpenBLAS stays in its adapter": ("trainer/a.c", "#include <cblas.h>\n", "adapter"),
    "a core has no malloc": ("shard/table.c", "void *f(void) { return malloc(1); }\n", "mn_env"),
    "a core has no clock": ("client/core.c", "long f(void) { return time(0); }\n", "mn_env"),
    "a library does not print": ("proto/a.c", 'void f(void) { printf("x"); }\n', "mn_env"),
    "lines fit": ("proto/a.c", "/* " + "x" * 100 + " */\n", "columns"),
    "files fit": ("proto/a.c", "int a;\n" * 801, "at most 800"),
    "functions fit": ("proto/a.c", "int f(void)\n{\n" + "    ;\n" * 70 + "}\n", "at most 70"),
    "no marks": ("proto/a.c", "/* TO" "DO */\n", "unfinished"),
    "tests named exist":
        ("README.md", "| promise | test |\n|---|---|\n| x | `no_such_test` |\n", "no test no_such_test"),
    "pages named exist": ("proto/a.c", "/* as no_such_page" ".md says */\n", "no page no_such_page"),
    "paths named exist": ("README.md", "see `tests/no_such_run --help`\n", "no tests/no_such_run"),
    "README is short": ("README.md", "x\n" * 150, "at most 149"),
}


def self_test():
    failed = 0
    for name, (path, text, expected) in WRONG.items():
        with tempfile.TemporaryDirectory() as root:
            for header in ("client/mneme.h", "shard/shard_core.h", path):
                os.makedirs(os.path.join(root, os.path.dirname(header)), exist_ok=True)
                with open(os.path.join(root, header), "w", encoding="utf-8") as file:
                    file.write(text if header == path else "\n")
            if not any(expected in finding for finding in check(root)):
                print(f"silent on something wrong: {name}")
                failed += 1
    print(f"{len(WRONG) - failed} rules speak, {failed} silent")
    return failed


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        sys.exit(1 if self_test() else 0)
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found = check(sys.argv[1])
    print("\n".join(found) if found else "lint: clean")
    sys.exit(1 if found else 0)
