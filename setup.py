"""Build the one extension module: the kernels once per instruction set, OpenMP where the compiler has it."""

import os
import platform
import sys
import tempfile
from glob import glob

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MSVC = sys.platform == "win32"
X86_64 = platform.machine().lower() in ("x86_64", "amd64")

# No -ffast-math: gcc before 13 then turns the whole process to flush-to-zero at load. No contraction: a kernel says
# where it wants a fused multiply-add, so that vector bodies and their tails round alike.
GNU_FLAGS = ["-std=c11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wall", "-Wextra"]
FLAGS = ["/O2", "/std:c11", "/experimental:c11atomics"] if MSVC else GNU_FLAGS

# The levels of the x86-64 psABI, spelled as features because older compilers do not know their names.
V2 = ["-msse3", "-mssse3", "-msse4.1", "-msse4.2", "-mpopcnt"]
V3 = [*V2, "-mavx", "-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mf16c", "-mlzcnt", "-mmovbe"]
V4 = [*V3, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
ISAS = {"baseline": V2, "v3": V3, "v4": V4} if X86_64 and not MSVC else {"baseline": []}

OPENMP_PROBE = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildKernels(build_ext):
    def build_extension(self, ext: Extension) -> None:
        openmp_compile, openmp_link = self.openmp_flags()
        ext.extra_compile_args = [*FLAGS, *openmp_compile]
        ext.extra_link_args = openmp_link + ([] if sys.platform in ("win32", "darwin") else ["-Wl,-z,noexecstack"])
        ext.extra_objects = []
        for isa, flags in ISAS.items():
            # A folder of its own for each instruction set: the object files would share one path otherwise.
            ext.extra_objects += self.compiler.compile(
                ["src/per_isa.c"],
                output_dir=os.path.join(self.build_temp, isa),
                macros=[("GC_ISA", isa)],
                include_dirs=["src"],
                extra_postargs=[*FLAGS, *flags],
                depends=ext.depends,
            )
        super().build_extension(ext)

    def openmp_flags(self) -> tuple[list[str], list[str]]:
        """Flags that compile and link an OpenMP program here; none with GRADCORE_OPENMP=0 or where nothing works."""
        if os.environ.get("GRADCORE_OPENMP") == "0":
            return [], []
        if MSVC:
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


C_FILES = ("dispatch", "threads", "rows", "spans", "norm", "optim")

setup(
    ext_modules=[
        Extension(
            "gradcore._kernels",
            ["src/_kernels.pyx", *(f"src/{name}.c" for name in C_FILES)],
            include_dirs=["src", numpy.get_include()],
            libraries=[] if MSVC else ["m"],  # not every interpreter has it loaded
            define_macros=[
                ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
                *((f"GC_HAVE_{isa.upper()}", "1") for isa in ISAS if isa != "baseline"),
            ],
            depends=sorted(glob("src/*.h") + glob("src/*.px[id]")),
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
