/* A libtorch_cpu.so of another version: compiled with -Wl,-soname,libtorch_cpu.so. */
#include <stdint.h>

uint64_t aoti_torch_abi_version(void) { return 0x020a000000000000u; }
