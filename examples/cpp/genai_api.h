/* genai_api.h - the functions of onnxruntime-genai's C interface that this program calls.
 *
 * onnxruntime-genai's wheels bring the shared library and no header, so what is needed of it is declared here, as it is
 * in version 0.18.0. It is opened when the program starts, and not linked, since it looks for onnxruntime as soon as it
 * is loaded and aborts where it finds none: onnxruntime has to be there first. Every OgaResult that is not NULL is an
 * error, and to be destroyed. */
#ifndef GENAI_API_H
#define GENAI_API_H

#include <cstddef>
#include <cstdint>

extern "C" {
typedef struct OgaResult OgaResult;
typedef struct OgaConfig OgaConfig;
typedef struct OgaModel OgaModel;
typedef struct OgaTokenizer OgaTokenizer;
typedef struct OgaTokenizerStream OgaTokenizerStream;
typedef struct OgaSequences OgaSequences;
typedef struct OgaGeneratorParams OgaGeneratorParams;
typedef struct OgaGenerator OgaGenerator;
}

/* F(result, name, arguments) */
#define GENAI_FUNCTIONS(F)                                                                                  \
  F(const char *, OgaResultGetError, (const OgaResult *))                                                   \
  F(void, OgaDestroyResult, (OgaResult *))                                                                  \
  F(void, OgaDestroyString, (const char *))                                                                 \
  F(void, OgaShutdown, ()) /* the last call: what onnxruntime-genai holds for the whole process */          \
  F(OgaResult *, OgaCreateConfig, (const char *folder, OgaConfig **))                                       \
  F(OgaResult *, OgaConfigOverlay, (OgaConfig *, const char *json))                                         \
  F(void, OgaDestroyConfig, (OgaConfig *))                                                                  \
  F(OgaResult *, OgaCreateModelFromConfig, (const OgaConfig *, OgaModel **))                                \
  F(void, OgaDestroyModel, (OgaModel *))                                                                    \
  F(OgaResult *, OgaCreateTokenizer, (const OgaModel *, OgaTokenizer **))                                   \
  F(void, OgaDestroyTokenizer, (OgaTokenizer *))                                                            \
  F(OgaResult *, OgaUpdateTokenizerOptions,                                                                 \
    (OgaTokenizer *, const char *const *names, const char *const *values, size_t count))                    \
  F(OgaResult *, OgaTokenizerEncode, (const OgaTokenizer *, const char *text, OgaSequences *))              \
  /* chat_template NULL: the folder's; messages and tools are JSON, tools may be NULL; destroy the text */  \
  F(OgaResult *, OgaTokenizerApplyChatTemplate,                                                             \
    (const OgaTokenizer *, const char *chat_template, const char *messages, const char *tools,              \
     bool add_generation_prompt, const char **text))                                                        \
  F(OgaResult *, OgaCreateTokenizerStream, (const OgaTokenizer *, OgaTokenizerStream **))                   \
  F(void, OgaDestroyTokenizerStream, (OgaTokenizerStream *))                                                \
  F(OgaResult *, OgaTokenizerStreamDecode,                                                                  \
    (OgaTokenizerStream *, int32_t token, const char **text)) /* valid until the next call */               \
  F(OgaResult *, OgaCreateSequences, (OgaSequences **))                                                     \
  F(void, OgaDestroySequences, (OgaSequences *))                                                            \
  F(size_t, OgaSequencesGetSequenceCount, (const OgaSequences *, size_t sequence)) /* its tokens */         \
  F(const int32_t *, OgaSequencesGetSequenceData, (const OgaSequences *, size_t sequence))                  \
  F(OgaResult *, OgaCreateGeneratorParams, (const OgaModel *, OgaGeneratorParams **))                       \
  F(void, OgaDestroyGeneratorParams, (OgaGeneratorParams *))                                                \
  F(OgaResult *, OgaGeneratorParamsSetSearchNumber, (OgaGeneratorParams *, const char *name, double))       \
  F(OgaResult *, OgaGeneratorParamsSetSearchBool, (OgaGeneratorParams *, const char *name, bool))           \
  F(OgaResult *, OgaCreateGenerator, (const OgaModel *, const OgaGeneratorParams *, OgaGenerator **))       \
  F(void, OgaDestroyGenerator, (OgaGenerator *))                                                            \
  F(bool, OgaGenerator_IsDone, (OgaGenerator *))                                                            \
  F(OgaResult *, OgaGenerator_AppendTokens, (OgaGenerator *, const int32_t *tokens, size_t count))          \
  F(OgaResult *, OgaGenerator_GenerateNextToken, (OgaGenerator *))                                          \
  F(OgaResult *, OgaGenerator_GetNextTokens, (const OgaGenerator *, const int32_t **tokens, size_t *count)) \
  F(OgaResult *, OgaGenerator_RewindTo, (OgaGenerator *, size_t length))                                    \
  F(size_t, OgaGenerator_GetSequenceCount, (const OgaGenerator *, size_t sequence)) /* its tokens */        \
  F(const int32_t *, OgaGenerator_GetSequenceData, (const OgaGenerator *, size_t sequence))

struct GenaiApi {
#define GENAI_POINTER(result, name, arguments) result(*name) arguments;
  GENAI_FUNCTIONS(GENAI_POINTER)
#undef GENAI_POINTER
};

#endif
