# make              train_gpt, for this machine
# make train_gpt_cu the same in CUDA, for this machine's GPU, in bf16; PRECISION=fp32: in float;
#                   ARCH=sm_90, or ARCH="sm_80 sm_90": for those
# make test         every check; train_gpt.cu's without a GPU. First installs what they need:
#                   programs by apt (as root, on Debian and Ubuntu), Python's packages in build/venv
# make test_course  every wrong solution of the exercises; make test plays a tenth of them
# make test_gpu     train_gpt.cu's checks on this machine's GPU
# make train_gpt_cu_emu the CUDA program on the CPU, slowly, by g++ alone
# make survive      kills runs and sweeps at 200 random moments: nothing is lost
#                   (ARGS="-kills 500 -seed 1")
# make endurance    a long run, large data and a large model: memory and speed
# make golden       remakes test/model/golden.csv, the numbers that no change may move unseen, after
#                   one that is meant to
# make coverage     the lines of the C sources that no test runs, and why
# make mutate       breaks the sources in over eight hundred small ways: a test must fail for each;
#                   JOBS=4 at a time
# make bench        tokens a second, beside the machine's limits, JAX, and PyTorch where python3 has
#                   it (PYTHON=another); ARGS="--rounds 5"; ARGS=-h lists the options
# make bench_gpu    the same of train_gpt.cu, kernel by kernel, and beside PyTorch where python3 has
#                   it (PYTHON=another)
# make sass         the machine code of train_gpt.cu: registers, spills, and attention's main loops;
#                   needs nvcc and cuobjdump, no GPU
# make figures      the pictures of README.md, from runs made here
# make page         build/train_gpt.html: the trainer as a page, which a browser opens without a
#                   network
# make test_page    its checks, in Chromium; PICTURES=figures: makes README.md's pictures of it
# make bench_page   its speed beside the native program's
# make show         the interventions and how many lines each has; make show-qk_norm prints them
#                   with the formula
# make mirror       train_gpt.c beside train_gpt.cu, section by section, and how much of the second
#                   stands in the first; ARGS=-q for the figures only
# make exercise-qk_norm DIR=folder CUDA=1    an exercise to hand out, without those lines (DIR and
#                   CUDA if wanted); VARIANT=7: with other names and another number
# make answers      the answers to the readers' questions; Q=3: one of them
# make grade DIR=folder                      grades it, by the tests that are here; HINT=1, 2 or 3
#                   says more, TEST=name or number runs only those tests
# make grade-all DIR=folder EXERCISE=qk_norm  grades each submission in a folder, JOBS=2 at a time,
#                   and writes folder/grades.csv
# make autograder-qk_norm   build/autograder-qk_norm.zip, for Gradescope; HINT=1, 2 or 3: its hints
# make fuzz         libFuzzer on every reader of bytes from outside, FUZZ_SECONDS=60 each; needs
#                   clang
# make lint         ruff, clang-tidy, cppcheck, gcc's analyzer, valgrind and shellcheck, and no line
#                   of a source wider than 100 columns; what they may not say, and why: .ruff.toml,
#                   .clang-tidy, .cppcheck
# make clean
# PORTABLE=1        a binary for any machine of this architecture, not just this one
# CC=clang          another compiler

# GNU make takes this for a rule that nothing uses, BSD make for an error with this text.
.error : needs GNU make, which may be called gmake here

ifeq ($(origin CC),default)
CC := cc
endif
CFLAGS ?= -O3 -Wall -Wextra
# The first of these lists of flags with which the compiler builds a program. What follows from it
# is worked out where it is used, when setup has installed the rest of a compiler.
first = $(shell for flags in $(1); do echo 'int main(void) { return 0; }' \
	| $(CC) $$flags -x c - -o /dev/null 2>/dev/null && echo $$flags && break; done)
# For this machine's processor. Clang on ARM wants -mcpu; a cross-compiler accepts neither.
MARCH = $(if $(PORTABLE),,$(call first,-march=native -mcpu=native))
# OpenMP where the compiler has its library; else one thread, and the vector loops alone
OPENMP = $(firstword $(call first,"-fopenmp -include omp.h") -fopenmp-simd)
# Nobody reads errno after a square root, nor the flags of floating-point exceptions; without them
# more loops become vector code, with the same results. No -ffast-math: it makes instabilities that
# are not there, and hides those that are (test/README.md, "Exactness").
# clang warns of the signs in the bounds that it makes of a taskloop's int counter; gcc without
# OpenMP of pragmas that it then ignores.
FLAGS = -std=gnu11 $(CFLAGS) $(MARCH) -fno-math-errno -fno-trapping-math $(OPENMP) \
	$(if $(findstring clang,$(CC)),-Wno-sign-compare) \
	$(if $(filter -fopenmp,$(OPENMP)),,-Wno-unknown-pragmas)
HEADERS := gpt.h dataloader.h $(wildcard lib/*.h)
SOURCES := train_gpt.c $(HEADERS) Makefile build/flags

train_gpt: $(SOURCES)
	$(CC) $(FLAGS) -o $@ train_gpt.c -lm
	@$(if $(filter -fopenmp,$(OPENMP)),,echo 'no OpenMP in $(CC): a run has one thread')

# The GPU of this machine or, where there is none (a login node), the ones in use
ARCH = $(if $(shell nvidia-smi -L 2>/dev/null),native,sm_80 sm_90 sm_100 sm_120)
NVCC = $(shell command -v nvcc || echo /usr/local/cuda/bin/nvcc)
# The type of activations in train_gpt.cu, and of the weights that its products read: bf16 or fp32
PRECISION = bf16
PRECISION_FLAG = $(if $(filter fp32,$(PRECISION)),-DFP32)
CUDA_FLAGS = -O3 -std=c++17 $(PRECISION_FLAG) $(if $(filter native,$(ARCH)),-arch=native,\
	$(foreach a,$(ARCH),-gencode arch=$(a:sm_%=compute_%),code=$(a)))
train_gpt_cu: train_gpt.cu $(HEADERS) Makefile build/flags_cu
	$(NVCC) $(CUDA_FLAGS) -o $@ train_gpt.cu -lcublas -lcublasLt

build/bench_gpu: test/bench/bench_gpu.cu train_gpt.cu $(HEADERS) Makefile build/flags_cu | build
	$(NVCC) $(CUDA_FLAGS) -o $@ test/bench/bench_gpu.cu -lcublas -lcublasLt

build/bench: test/bench/bench.c $(SOURCES) | build
	$(CC) $(FLAGS) -o $@ test/bench/bench.c -lm -ldl

# The CUDA program on the CPU, by g++ alone: slow, for its tests on a machine without a GPU.
train_gpt_cu_emu: train_gpt.cu $(HEADERS) test/cuda/cuda_emu.h Makefile build/flags build/flags_cu
	$(CXX) -std=c++17 $(CFLAGS) $(MARCH) -Wno-unknown-pragmas -Wno-unused-function \
		-fno-strict-aliasing -rdynamic -DCUDA_EMU $(PRECISION_FLAG) -x c++ train_gpt.cu -o $@ -lm

# Change when the compiler or a flag does, so that all is built again.
build/flags: RECORD = $(CC) $(FLAGS)
build/flags_cu: RECORD = $(NVCC) $(CUDA_FLAGS)
build/flags build/flags_cu: force | build
	@echo '$(RECORD)' | cmp -s - $@ || echo '$(RECORD)' > $@

build:
	mkdir -p build

# Python's packages, pinned; the stamp is touched when all are there. The page needs few.
build/venv/ready: test/requirements.txt
build/page_venv/ready: web/requirements.txt
build/venv/ready build/page_venv/ready: | build
	python3 -m venv $(@D) || { \
		echo "make: needs python3 with venv; on Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 2; \
	}
	$(@D)/bin/pip install -q --disable-pip-version-check -r $<
	touch $@

.PHONY: show mirror answers grade grade-all test test_course test_gpu coverage mutate golden survive
.PHONY: endurance bench bench_gpu sass figures fuzz lint clean force setup
.PHONY: page test_page bench_page browser
.NOTPARALLEL:    # setup comes first in a rule: it installs what the rest needs

# The programs that the tests need; make -o setup test does not look for them.
setup:
	@test/setup.sh

test: setup train_gpt build/venv/ready
	build/venv/bin/python -m pytest -q -rs -n auto --dist loadfile --no-loadscope-reorder \
		$(addprefix test/,cuda tools course files model bench)    # the longest files first

test_course: setup train_gpt build/venv/ready
	COURSE=all build/venv/bin/python -m pytest -q -n auto --dist loadfile test/course

# The comparisons of train_gpt.cu with train_gpt.c on this machine's GPU, and compute-sanitizer
# where it is installed. They build it in both precisions.
test_gpu: train_gpt build/venv/ready
	GPU=1 build/venv/bin/python -m pytest -q test/cuda/test_cuda.py test/cuda/test_attention.py

page: build/page_venv/ready
	build/page_venv/bin/python web/build.py

browser:
	@test/setup.sh chromium=chromium chromedriver=chromium-driver

# The tests' own conftest.py needs packages that the page does not.
test_page: browser page
	PICTURES=$(or $(PICTURES),build) build/page_venv/bin/python -m pytest -q \
		--confcutdir=test/page test/page

bench_page: browser page train_gpt
	build/page_venv/bin/python test/page/bench_page.py

coverage: setup build/venv/ready
	build/venv/bin/python test/tools/cover.py

mutate: setup build/venv/ready
	build/venv/bin/python test/tools/mutate.py -j $(or $(JOBS),1)

survive endurance: train_gpt build/venv/ready
	PYTHONPATH=test build/venv/bin/python test/files/$@.py $(ARGS)

golden: build/venv/ready
	PYTHONPATH=test build/venv/bin/python test/model/test_numbers.py

# PyTorch is too large for build/venv: PYTHON is a Python that has it.
PYTHON = python3
bench: build/bench build/venv/ready
	build/venv/bin/python test/bench/bench.py --python '$(PYTHON)' $(ARGS)

bench_gpu: build/bench_gpu
	$(PYTHON) test/bench/bench_gpu.py

sass:
	@python3 test/tools/sass.py $(PRECISION_FLAG)

# README.md's and the gallery's pictures: the paper's experiments at laptop scale
# (experiment:seeds), in some five hours on two cores; finished runs are not repeated
EXPERIMENTS = qk_norm:3 logit_growth:3 predict_logits:3 z_loss:3 warmup:3 weight_decay:3 \
	depth_width:3 mu_param:3 coord_check:3 kappa:3 predict_eps:3 block_rms:3 recipe:3 scale:3 \
	qk_norm_over:3 pointwise:3 rms_lr:3 steps:3 batch:3 beta2:3 clip:3 league:3
figures: train_gpt build/venv/ready
	for e in $(EXPERIMENTS); do \
	  ./sweep.sh $${e%:*} -seeds $${e#*:} -out runs/figures/$${e%:*} || exit 1; \
	done
	build/venv/bin/python plot.py runs/figures -o figures

build/fuzz: test/files/fuzz.c train_gpt.c $(HEADERS) Makefile | build
	clang -std=gnu11 -O1 -g -Wall -Wextra -fno-omit-frame-pointer -fno-sanitize-recover=all \
		-fsanitize=fuzzer,address,undefined,float-cast-overflow -o $@ test/files/fuzz.c -lm

# Inputs that reach new code stay in build/corpus; the next run begins with them.
FUZZ_SECONDS = 60
fuzz: setup build/fuzz build/venv/ready
	for t in bin safetensors resume flags tokenizer; do \
	  mkdir -p build/corpus/$$t && FUZZ=$$t build/fuzz -max_total_time=$(FUZZ_SECONDS) \
	    -close_fd_mask=3 -timeout=60 -artifact_prefix=build/$$t- build/corpus/$$t || exit 1; \
	done
	FUZZ_EXAMPLES=$$((3 * $(FUZZ_SECONDS))) \
		build/venv/bin/python -m pytest -q test/files/test_fuzz.py -k plot

# The analyzer of gcc 12 takes an array that a loop has filled for uninitialized; valgrind, which
# sees the loop run, does not.
MEMCHECK = valgrind -q --error-exitcode=3 --leak-check=full build/train_gpt_plain \
	-out build/memcheck
lint: setup build/venv/ready | build
	! git ls-files '*.[ch]' '*.cu' '*.sh' '*.py' '*.js' '*.html' .ci/run Makefile \
		| xargs grep -nE '^.{101}'
	build/venv/bin/ruff check -q .
	build/venv/bin/ruff format -q --check .
	shellcheck .ci/run sweep.sh test/setup.sh
	cppcheck -q --error-exitcode=1 --enable=warning,performance,portability \
		--suppressions-list=.cppcheck --library=posix --std=c11 train_gpt.c
	clang-tidy --quiet train_gpt.c -- -std=gnu11
	clang-tidy --quiet -checks=-clang-analyzer-core.uninitialized.Assign train_gpt.cu \
		-- -x c++ -std=c++17 -DCUDA_EMU
	gcc -std=gnu11 -O1 -fanalyzer -Wno-analyzer-use-of-uninitialized-value -Wall -Wextra -Werror \
		-Wno-unknown-pragmas -c -o /dev/null train_gpt.c
	$(CC) -std=gnu11 -O1 -g -o build/train_gpt_plain train_gpt.c -lm
	$(MEMCHECK) -d 8 -layers 1 -heads 2 -T 8 -batch 2 -steps 4 -eval_tokens 32 -checkpoint_every 2
	$(MEMCHECK) -resume -steps 6
	$(MEMCHECK) -sample 20 -prompt Munlu
	$(MEMCHECK) -eval
	$(MEMCHECK) -d 8 -layers 1 -heads 2 -T 8 -batch 2 -steps 4 -eval_tokens 32 -qk_norm 0 \
		-attn_cap 2 -qk_clip 1 -optimizer muon -gate 1 -peri_ln 1 -cautious 1

mirror:
	@python3 test/tools/mirror.py $(ARGS)

show:
	@python3 test/course/show.py
show-%: force
	@python3 test/course/show.py $*

exercise-%: build/venv/ready force
	@build/venv/bin/python test/course/exercise.py $* $(if $(DIR),--dir "$$DIR") \
		$(if $(CUDA),--cuda) $(if $(VARIANT),--variant "$$VARIANT")

answers:
	@python3 test/course/answers.py "$$Q"

# EXERCISE=name: do not believe the folder's own word for it. make passes on HINT, TEST, SEED and
# JOBS, as all variables of its command line.
grade: build/venv/ready
	@build/venv/bin/python test/course/grade.py "$${DIR:-.}" $(EXERCISE)
grade-all: build/venv/ready
	@build/venv/bin/python test/course/grade_all.py "$$DIR" $(EXERCISE)

autograder-%: build/venv/ready force
	@build/venv/bin/python test/course/autograder.py $* $(if $(CUDA),--cuda) \
		$(if $(VARIANT),--variant "$$VARIANT")

clean:
	rm -rf train_gpt train_gpt_cu train_gpt_cu_emu build
