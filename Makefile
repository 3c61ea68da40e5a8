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
OPENMP := $(shell printf '\#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n' > /tmp/openmp_$$$$.c; \
	$(CC) -fopenmp /tmp/openmp_$$$$.c -o /tmp/openmp_$$$$ 2>/dev/null && echo -fopenmp || echo -fopenmp-simd; rm -f /tmp/openmp_$$$$ /tmp/openmp_$$$$.c)

train_gpt: train_gpt.c gpt.h dataloader.h Makefile
	$(CC) $(FLAGS) -o $@ train_gpt.c -lm
