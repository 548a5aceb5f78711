/* Asks an exported model without Python: recommend for a history, and search for a text.
 *
 *   recommend SAVED_MODEL/VERSION TENSORFLOW_TEXT/python/ops K TEXT [ITEM_ID...]
 *
 * Prints one line for each item: the signature, the rank, the id and the score, separated by tabs. Only TensorFlow's C
 * API is used; see test_c_program.py for how it is built against the libraries of the tensorflow wheel.
 */
#include <glob.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

enum { MOST = 16 }; /* inputs or outputs of a signature */

static TF_Status* status;

static void check(const char* what) {
  if (TF_GetCode(status) == TF_OK) return;
  fprintf(stderr, "%s: %s\n", what, TF_Message(status));
  exit(4);
}

static void fail(const char* what, const char* which) {
  fprintf(stderr, "%s: %s\n", what, which);
  exit(4);
}

/* TensorFlow Text registers its operations when its libraries are loaded. */
static void load_text_ops(const char* folder) {
  char pattern[4096];
  glob_t found;
  snprintf(pattern, sizeof pattern, "%s/*.so", folder);
  if (glob(pattern, 0, NULL, &found) != 0) fail("no library of TensorFlow Text", pattern);
  for (size_t i = 0; i < found.gl_pathc; ++i) {
    TF_LoadLibrary(found.gl_pathv[i], status);
    check(found.gl_pathv[i]);
  }
  globfree(&found);
}

/* The signatures -------------------------------------------------------------------------------------------------
 *
 * The MetaGraphDef that comes with the graph says which tensors a signature means. The little of the protobuf format
 * that it takes to find them: a message is a run of (tag, value), and what is of interest has a length in front.
 */

typedef struct {
  const uint8_t *at, *end;
} Bytes;

static uint64_t varint(Bytes* from) {
  uint64_t value = 0;
  for (int shift = 0; from->at < from->end && shift < 64; shift += 7) {
    const uint8_t byte = *from->at++;
    value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) return value;
  }
  fail("saved_model.pb", "a damaged number");
  return 0;
}

/* The next field that has a length; its number, or 0 at the end. */
static uint32_t next_field(Bytes* message, Bytes* value) {
  while (message->at < message->end) {
    const uint64_t tag = varint(message);
    uint64_t length = 0;
    switch (tag & 7) {
      case 0: varint(message); continue;
      case 1: length = 8; break;
      case 2: length = varint(message); break;
      case 5: length = 4; break;
      default: fail("saved_model.pb", "an unknown kind of field");
    }
    if (length > (uint64_t)(message->end - message->at)) fail("saved_model.pb", "a field that is cut off");
    *value = (Bytes){message->at, message->at + length};
    message->at += length;
    if ((tag & 7) == 2) return (uint32_t)(tag >> 3);
  }
  return 0;
}

/* The first field of that number; empty where there is none. */
static Bytes field(Bytes message, uint32_t number) {
  Bytes value;
  for (uint32_t found; (found = next_field(&message, &value)) != 0;)
    if (found == number) return value;
  return (Bytes){NULL, NULL};
}

static int equals(Bytes text, const char* other) {
  const size_t length = (size_t)(text.end - text.at);
  return length == strlen(other) && memcmp(text.at, other, length) == 0;
}

typedef struct {
  char name[64]; /* what the signature calls it */
  TF_Output tensor;
} Named;

/* The tensors of one side of a signature, each an entry of map<string, TensorInfo>; how many there are. */
static int tensors(TF_Graph* graph, Bytes signature, uint32_t side, Named* found) {
  int count = 0;
  Bytes entry;
  for (uint32_t number; (number = next_field(&signature, &entry)) != 0;) {
    if (number != side) continue;
    if (count == MOST) fail("the signature", "too many tensors");
    const Bytes key = field(entry, 1), tensor = field(field(entry, 2), 1);
    char name[256];
    snprintf(found[count].name, sizeof found->name, "%.*s", (int)(key.end - key.at), (const char*)key.at);
    snprintf(name, sizeof name, "%.*s", (int)(tensor.end - tensor.at), (const char*)tensor.at);
    char* colon = strchr(name, ':');
    if (colon == NULL) fail("not the name of a tensor", name);
    *colon = '\0';
    found[count].tensor = (TF_Output){TF_GraphOperationByName(graph, name), atoi(colon + 1)};
    if (found[count].tensor.oper == NULL) fail("not in the graph", name);
    ++count;
  }
  return count;
}

static Bytes signature_of(const TF_Buffer* meta_graph, const char* name) {
  const uint8_t* start = meta_graph->data;
  Bytes message = {start, start + meta_graph->length}, entry;
  for (uint32_t number; (number = next_field(&message, &entry)) != 0;)
    if (number == 5 && equals(field(entry, 1), name)) return field(entry, 2);
  fail("the model has no such signature", name);
  return message;
}

/* Tensors --------------------------------------------------------------------------------------------------------- */

/* A row of strings, or one string where the signature takes one for each request. */
static TF_Tensor* strings(int rank, int count, char* const* values) {
  const int64_t shape[] = {1, count};
  TF_Tensor* tensor = TF_AllocateTensor(TF_STRING, shape, rank, (size_t)count * sizeof(TF_TString));
  TF_TString* into = TF_TensorData(tensor);
  for (int i = 0; i < count; ++i) {
    TF_StringInit(&into[i]);
    TF_StringCopy(&into[i], values[i], strlen(values[i]));
  }
  return tensor;
}

/* Long strings live outside of the tensor that holds them. */
static void release(TF_Tensor* tensor) {
  if (TF_TensorType(tensor) == TF_STRING) {
    TF_TString* values = TF_TensorData(tensor);
    for (int64_t i = 0; i < TF_TensorElementCount(tensor); ++i) TF_StringDealloc(&values[i]);
  }
  TF_DeleteTensor(tensor);
}

typedef struct {
  int k, history_length;
  char *text, **history;
} Request;

/* What the request says of this input; nothing at all of those that it does not know, such as what to exclude. */
static TF_Tensor* input(TF_Graph* graph, const Named* named, Request request) {
  const int rank = TF_GraphGetTensorNumDims(graph, named->tensor, status);
  check(named->name);
  if (strcmp(named->name, "history") == 0) return strings(rank, request.history_length, request.history);
  if (strcmp(named->name, "text") == 0) return strings(rank, 1, &request.text);
  const TF_DataType type = TF_OperationOutputType(named->tensor);
  if (type == TF_STRING) return strings(rank, rank < 2, (char*[]){""});
  const int64_t shape[] = {1, 0};
  TF_Tensor* tensor = TF_AllocateTensor(type, shape, rank, rank < 2 ? TF_DataTypeSize(type) : 0);
  if (rank < 2) memset(TF_TensorData(tensor), 0, TF_TensorByteSize(tensor));
  if (strcmp(named->name, "k") == 0) *(int32_t*)TF_TensorData(tensor) = request.k;
  return tensor;
}

static TF_Tensor* output(const char* name, const Named* named, TF_Tensor* const* values, int count) {
  for (int i = 0; i < count; ++i)
    if (strcmp(named[i].name, name) == 0) return values[i];
  fail("the signature has no such output", name);
  return NULL;
}

static void ask(TF_Session* session, TF_Graph* graph, const TF_Buffer* meta_graph, const char* name, Request request) {
  const Bytes signature = signature_of(meta_graph, name);
  Named in[MOST], out[MOST];
  const int ins = tensors(graph, signature, 1, in), outs = tensors(graph, signature, 2, out);
  TF_Output feeds[MOST], fetches[MOST];
  TF_Tensor *given[MOST], *told[MOST] = {NULL};
  for (int i = 0; i < ins; ++i) {
    feeds[i] = in[i].tensor;
    given[i] = input(graph, &in[i], request);
  }
  for (int i = 0; i < outs; ++i) fetches[i] = out[i].tensor;
  TF_SessionRun(session, NULL, feeds, given, ins, fetches, told, outs, NULL, 0, NULL, status);
  check(name);
  TF_Tensor* const ids = output("item_ids", out, told, outs);
  const TF_TString* id = TF_TensorData(ids);
  const float* score = TF_TensorData(output("scores", out, told, outs));
  for (int64_t i = 0; i < TF_Dim(ids, 1); ++i) {
    const int length = (int)TF_StringGetSize(&id[i]);
    if (length > 0) printf("%s\t%d\t%.*s\t%.9g\n", name, (int)i + 1, length, TF_StringGetDataPointer(&id[i]), score[i]);
  }
  for (int i = 0; i < ins; ++i) release(given[i]);
  for (int i = 0; i < outs; ++i) TF_DeleteTensor(told[i]);
}

int main(int argc, char** argv) {
  if (argc < 5 || atoi(argv[3]) < 1) {
    fprintf(stderr, "usage: recommend SAVED_MODEL/VERSION TENSORFLOW_TEXT/python/ops K TEXT [ITEM_ID...]\n");
    return 2;
  }
  const Request request = {atoi(argv[3]), argc - 5, argv[4], argv + 5};
  status = TF_NewStatus();
  load_text_ops(argv[2]);

  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  TF_Buffer* meta_graph = TF_NewBuffer();
  const char* tags[] = {"serve"};
  TF_Session* session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, meta_graph, status);
  check(argv[1]);

  ask(session, graph, meta_graph, "recommend", request);
  ask(session, graph, meta_graph, "search", request);

  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteBuffer(meta_graph);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
