/* A library of an older release: a table that ends early, or (-DOTHER_ABI) none of this ABI version. */
#include "facegrad.h"

static facegrad_api table;

const facegrad_api *facegrad_get_api(uint32_t abi_version) {
    table.struct_size = sizeof table - sizeof(void *);
    table.abi_version = abi_version;
#ifdef OTHER_ABI
    return NULL;
#endif
    return &table;
}
