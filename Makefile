# make              train_gpt, for this machine
# make test         every check, after installing what it needs into build/venv
# make bench        tokens a second, and how far that is from the machine's limit
# make PORTABLE=1   a binary that runs on any machine of this architecture

CC ?= cc
ifeq ($(origin CC),default)
CC := cc
endif
CFLAGS ?= -O3 -Wall -Wextra
ARCH = $(if $(PORTABLE),,-march=native)
# errno of sqrt is never read; without this the square roots of a loop are not vector code. No -ffast-math: see README.md
FLAGS = -std=gnu11 $(CFLAGS) $(ARCH) -fno-math-errno $(OPENMP)
# OpenMP where the compiler has its library, else one thread and its vector loops alone
OPENMP := $(shell echo 'int main(void) { return omp_get_max_threads() < 1; }' | $(CC) -fopenmp -include omp.h -x c - -o /dev/null 2>/dev/null \
	&& echo -fopenmp || echo -fopenmp-simd)

build/bench: test/bench.c train_gpt.c gpt.h dataloader.h Makefile | build
	$(CC) $(FLAGS) -o $@ test/bench.c -lm -ldl

build:
	mkdir -p build

train_gpt: train_gpt.c gpt.h dataloader.h Makefile
	$(CC) $(FLAGS) -o $@ train_gpt.c -lm
