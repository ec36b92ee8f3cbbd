/* Stands in for NVIDIA's TensorRT 10.14, its parser of ONNX and cuDNN, so that ONNX Runtime's own TensorRT provider builds, keeps, loads and
 * runs engines where there is no device.
 *
 * It takes one graph only, whose name is `doubled`: input `x` of shape [-1, 3] and output `y`, twice the input; all others are left to CUDA.
 * An engine is for the sizes between those of its profile, as TensorRT's are, and is refused when its file is damaged. The log of the device
 * gets `build LEAST MOST`, `load LEAST MOST` and `double ROWS`, with `thread NAME` before the first and the last.
 *
 * Objects are laid out as C++ lays them out: a table of functions and, for all but the parser, an inner object with a table of its own. The
 * places in the tables were found by looking at what the provider calls.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

enum { COLUMNS = 3, VERSION = 101401, SLOTS = 64 };
enum Kind { BUILDER, CONFIG, CONTEXT, ENGINE, INPUT, MEMORY, NETWORK, OUTPUT, PROFILE, RUNTIME, TIMINGS, KINDS };
enum { MODE_INPUT = 1, MODE_OUTPUT = 2 };
enum { SELECT_LEAST = 0, SELECT_MOST = 2 };

static const char GRAPH[] = "doubled";

/* How an engine is written; the end tells a whole one. */
#define ENGINE_FORMAT "an engine for %ld to %ld rows"
#define ENGINE_END '.'

typedef struct {
    int32_t count;
    int64_t lengths[8];
} Shape;

/* What any of the objects may have. */
typedef struct Inner {
    void **table;
    /* Of a profile and an engine: the rows that are taken; of a context: those of the next run. */
    int64_t least, most, rows;
    /* Of a configuration. */
    struct Inner *profile;
    /* Of a piece of memory. */
    char text[64];
    /* Of a context: where the input and the output lie. */
    void *input, *output;
} Inner;

typedef struct {
    void **table;
    Inner *inner;
} Object;

static void *outer_table[SLOTS], *inner_tables[KINDS][SLOTS], *parser_table[SLOTS];

static void *nothing(void) { return NULL; }

static void lacking(void) {
    fputs("the stand-in for TensorRT was asked for something that it does not have\n", stderr);
    abort();
}

/* Nothing of it is freed: there is little of it. */
static Object *make(enum Kind kind) {
    Object *object = calloc(1, sizeof *object);
    Inner *inner = calloc(1, sizeof *inner);
    if (!object || !inner) abort();
    inner->table = inner_tables[kind];
    *object = (Object){outer_table, inner};
    return object;
}

/* ---- What is built ---- */

static Object *create_config(void) { return make(CONFIG); }
static Object *create_network(void) { return make(NETWORK); }
static Object *create_profile(void) { return make(PROFILE); }
static Object *create_timings(void) { return make(TIMINGS); }
static int64_t one(void) { return 1; }
static int64_t yes(void) { return 1; }
static int64_t no(void) { return 0; }

static int64_t set_profile_shape(Inner *profile, const char *name, int select, const Shape *shape) {
    (void)name;
    if (select == SELECT_LEAST) profile->least = shape->lengths[0];
    if (select == SELECT_MOST) profile->most = shape->lengths[0];
    return 1;
}

static int64_t add_profile(Inner *config, Object *profile) {
    config->profile = profile->inner;
    return 0;
}

static Object *build(Inner *builder, Object *network, Object *config) {
    (void)builder, (void)network;
    Inner *profile = config->inner->profile;
    if (!profile) return NULL;
    note_thread();
    note("build %ld %ld\n", (long)profile->least, (long)profile->most);
    Object *memory = make(MEMORY);
    snprintf(memory->inner->text, sizeof memory->inner->text, ENGINE_FORMAT "%c", (long)profile->least, (long)profile->most, ENGINE_END);
    return memory;
}

static Object *write_timings(void) {
    Object *memory = make(MEMORY);
    strcpy(memory->inner->text, "timings");
    return memory;
}

static const char *memory_data(Inner *memory) { return memory->text; }
static size_t memory_size(Inner *memory) { return strlen(memory->text); }

/* ---- The graph ---- */

static Object *network_input(void) { return make(INPUT); }
static Object *network_output(void) { return make(OUTPUT); }
static const char *input_name(void) { return "x"; }
static const char *output_name(void) { return "y"; }

static Shape *any_rows(Shape *shape) {
    *shape = (Shape){2, {-1, COLUMNS}};
    return shape;
}

static int64_t supports(void *parser, const char *model, size_t bytes) {
    (void)parser;
    return memmem(model, bytes, GRAPH, sizeof GRAPH - 1) != NULL;
}

/* Its one subgraph, of the one node. */
static const int64_t *subgraph_nodes(void *parser, int64_t index, int64_t *count) {
    static const int64_t first[] = {0};
    (void)parser, (void)index;
    *count = 1;
    return first;
}

/* ---- What runs ---- */

static Object *load(Inner *runtime, const char *bytes, size_t size) {
    (void)runtime;
    char text[sizeof((Inner *)0)->text] = "";
    long least, most;
    char end = 0;
    memcpy(text, bytes, size < sizeof text ? size : sizeof text - 1);
    if (sscanf(text, ENGINE_FORMAT "%c", &least, &most, &end) != 3 || end != ENGINE_END) return NULL;
    note("load %ld %ld\n", least, most);
    Object *engine = make(ENGINE);
    engine->inner->least = least;
    engine->inner->most = most;
    return engine;
}

static Object *create_context(Inner *engine) {
    Object *context = make(CONTEXT);
    context->inner->least = engine->least;
    context->inner->most = engine->most;
    return context;
}

static int64_t tensors(void) { return 2; }
static const char *tensor_name(Inner *engine, int index) { return (void)engine, index == 0 ? "x" : "y"; }
static int64_t tensor_mode(Inner *engine, const char *name) { return (void)engine, *name == 'x' ? MODE_INPUT : MODE_OUTPUT; }

static int64_t set_input_shape(Inner *context, const char *name, const Shape *shape) {
    (void)name;
    context->rows = shape->lengths[0];
    return context->rows >= context->least && context->rows <= context->most;
}

static Shape *tensor_shape(Shape *shape, Inner *context, const char *name) {
    (void)name;
    *shape = (Shape){2, {context->rows, COLUMNS}};
    return shape;
}

static int64_t set_address(Inner *context, const char *name, void *address) {
    *(*name == 'x' ? &context->input : &context->output) = address;
    return is_on_device(address);
}

static int64_t run(Inner *context) {
    note_thread();
    note("double %ld\n", (long)context->rows);
    const float *input = reach(context->input);
    float *output = reach(context->output);
    for (int64_t i = 0; i < context->rows * COLUMNS; i++) output[i] = 2 * input[i];
    return 1;
}

/* ---- Where the provider looks for them ---- */

__attribute__((constructor)) static void lay_out(void) {
    for (int slot = 0; slot < SLOTS; slot++) {
        /* Ends of objects, mostly. */
        outer_table[slot] = parser_table[slot] = (void *)nothing;
        for (int kind = 0; kind < KINDS; kind++) inner_tables[kind][slot] = (void *)lacking;
    }
    parser_table[0] = (void *)yes;
    parser_table[17] = (void *)supports;
    parser_table[18] = (void *)one;
    parser_table[19] = (void *)yes;
    parser_table[20] = (void *)subgraph_nodes;
    void **table = inner_tables[BUILDER];
    table[7] = (void *)create_config;
    table[8] = (void *)create_network;
    table[9] = (void *)create_profile;
    table[14] = (void *)build;
    table = inner_tables[CONFIG];
    table[25] = (void *)add_profile;
    table[40] = (void *)create_timings;
    table[41] = (void *)yes;
    table[42] = (void *)create_timings;
    table = inner_tables[NETWORK];
    table[14] = table[16] = (void *)one;
    table[15] = (void *)network_input;
    table[17] = (void *)network_output;
    for (enum Kind kind = INPUT; kind <= OUTPUT; kind += OUTPUT - INPUT) {
        inner_tables[kind][3] = kind == INPUT ? (void *)input_name : (void *)output_name;
        inner_tables[kind][5] = (void *)any_rows;
        inner_tables[kind][21] = (void *)no;
    }
    inner_tables[PROFILE][2] = (void *)set_profile_shape;
    inner_tables[MEMORY][2] = (void *)memory_data;
    inner_tables[MEMORY][3] = (void *)memory_size;
    inner_tables[TIMINGS][2] = (void *)write_timings;
    inner_tables[RUNTIME][3] = (void *)load;
    table = inner_tables[ENGINE];
    table[5] = (void *)create_context;
    table[22] = (void *)no;
    table[23] = (void *)tensor_mode;
    table[30] = (void *)tensors;
    table[31] = (void *)tensor_name;
    table = inner_tables[CONTEXT];
    table[21] = (void *)set_input_shape;
    table[22] = (void *)tensor_shape;
    table[24] = (void *)set_address;
    table[37] = (void *)run;
}

PUBLIC Object *createInferBuilder_INTERNAL(void) { return make(BUILDER); }
PUBLIC Object *createInferRuntime_INTERNAL(void) { return make(RUNTIME); }
PUBLIC Object *createInferRefitter_INTERNAL(void) { return NULL; }
PUBLIC Object *createNvOnnxParserRefitter_INTERNAL(void) { return NULL; }
PUBLIC int getInferLibVersion(void) { return VERSION; }

PUBLIC Object *createNvOnnxParser_INTERNAL(void) {
    static Object parser = {parser_table, NULL};
    return &parser;
}

PUBLIC Object *getPluginRegistry(void) {
    static Object registry = {outer_table, NULL};
    return &registry;
}

PUBLIC int cudnnCreate(Handle *handle) {
    *handle = malloc(1);
    return *handle == NULL;
}

PUBLIC int cudnnDestroy(Handle handle) {
    free(handle);
    return 0;
}

PUBLIC int cudnnSetStream(Handle handle, Handle stream) { return (void)handle, (void)stream, 0; }
