"""Build the one extension module: the kernels once per instruction set, OpenMP where the compiler has it."""

import os
import re
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

# No -ffast-math: gcc before 13 then turns the whole process to flush-to-zero at load. No contraction: a kernel says
# where it wants a fused multiply-add, so that vector bodies and their tails round alike. Python's own flags ask for
# debugging information, which is seven eighths of the module's size.
GNU_FLAGS = ["-std=c11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fvisibility=hidden"]
GNU_FLAGS += ["-Wall", "-Wextra", "-g" if os.environ.get("GRADCORE_DEBUG") == "1" else "-g0"]
MSVC_FLAGS = ["/O2", "/std:c11", "/experimental:c11atomics"]

OPENMP_PROBE = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


def instruction_sets() -> dict[str, list[str]]:
    """The compiler's options for each set of src/isa/isa.def."""
    sets, options = {}, []
    for name, features in re.findall(r"^SET\((\w+), (.*)\)$", Path("src/isa/isa.def").read_text(), re.MULTILINE):
        words = re.findall(r"(FEATURE|OPTION)\((.*?)\)", features)
        options = options + ["-m" + word if kind == "FEATURE" else word for kind, word in words]
        sets[name] = options
    return sets


def target_machine() -> str:
    """The processor to build for, which need not be the one that builds."""
    one = re.fullmatch(r"\s*-arch\s+(\S+)\s*", os.environ.get("ARCHFLAGS", ""))  # how macOS asks for another one
    return one[1] if one else sysconfig.get_platform().rpartition("-")[2]


class BuildKernels(build_ext):
    def build_extension(self, ext: Extension) -> None:
        changed = newer_group([*ext.sources, *ext.depends], self.get_ext_fullpath(ext.name), "newer")
        if not changed and not self.force:
            return
        msvc = self.compiler.compiler_type == "msvc"
        x86_64 = target_machine().lower() in ("x86_64", "amd64")
        isas = instruction_sets() if x86_64 and not msvc else {"baseline": []}
        flags = MSVC_FLAGS if msvc else GNU_FLAGS
        openmp_compile, openmp_link = self.openmp_flags(msvc)
        if len(isas) > 1:
            ext.define_macros.append(("GC_ALL_SETS", "1"))
        ext.extra_compile_args = [*flags, *openmp_compile]
        strip = [] if os.environ.get("GRADCORE_DEBUG") == "1" else ["-Wl,-s"]
        ext.extra_link_args = openmp_link + (["-Wl,-z,noexecstack", *strip] if sys.platform.startswith("linux") else [])
        ext.libraries = [] if msvc else ["m"]  # not every interpreter has it loaded
        with ThreadPoolExecutor() as pool:
            sets = pool.map(partial(self.compile_set, ext, flags), *zip(*isas.items(), strict=True))
            ext.extra_objects = [path for objects in sets for path in objects]
        super().build_extension(ext)

    def compile_set(self, ext: Extension, flags: list[str], isa: str, isa_flags: list[str]) -> list[str]:
        # A folder of its own for each instruction set: the object files would share one path otherwise.
        return self.compiler.compile(
            ["src/per_isa.c"],
            output_dir=os.path.join(self.build_temp, isa),
            macros=[("GC_ISA", isa)],
            include_dirs=["src"],
            extra_postargs=[*flags, *isa_flags],
            depends=ext.depends,
        )

    def openmp_flags(self, msvc: bool) -> tuple[list[str], list[str]]:
        """Flags that compile and link an OpenMP program here; none with GRADCORE_OPENMP=0 or where nothing works."""
        if os.environ.get("GRADCORE_OPENMP") == "0":
            return [], []
        if msvc:
            flags = ["/openmp"], []
        elif sys.platform == "darwin":
            flags = ["-Xpreprocessor", "-fopenmp"], ["-lomp"]
        else:
            flags = ["-fopenmp"], ["-fopenmp"]
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "probe.c")
            with open(source, "w") as file:
                file.write(OPENMP_PROBE)
            try:
                objects = self.compiler.compile([source], output_dir=folder, extra_postargs=flags[0])
                self.compiler.link_executable(objects, os.path.join(folder, "probe"), extra_postargs=flags[1])
            except Exception as error:  # any failure of any compiler means the same: no OpenMP
                self.warn(f"no OpenMP here, gradcore will run on one thread ({error})")
                return [], []
        return flags


ELSEWHERE = {"src/per_isa.c", "src/_kernels.c"}  # compiled for each set; made of the .pyx
C_FILES = sorted({path.as_posix() for path in Path("src").rglob("*.c")} - ELSEWHERE)
HEADERS = sorted(path.as_posix() for path in Path("src").rglob("*") if path.suffix in (".h", ".def", ".pxd", ".pxi"))

setup(
    ext_modules=[
        Extension(
            "gradcore._kernels",
            ["src/_kernels.pyx", *C_FILES],
            include_dirs=["src", numpy.get_include()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
            depends=["setup.py", "src/per_isa.c", *HEADERS],
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
