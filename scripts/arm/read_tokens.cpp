// read_tokens MODEL PROMPT_LENGTH TOKEN...
//
// Reads the first PROMPT_LENGTH tokens in one piece and the others one by one, as an answer is made.
// Writes the logits after each token to stdout: float32, the vocabulary for each token.
// Exit code 1 with a line on stderr for anything that does not work.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "llama.h"

static int failed(const char * what) {
    fprintf(stderr, "read_tokens: %s\n", what);
    return 1;
}

int main(int argc, char ** argv) {
    if (argc < 4) {
        return failed("usage: read_tokens MODEL PROMPT_LENGTH TOKEN...");
    }
    const int prompt = atoi(argv[2]);
    std::vector<llama_token> tokens;
    for (int i = 3; i < argc; i++) {
        tokens.push_back(atoi(argv[i]));
    }
    const int count = (int) tokens.size();
    if (prompt < 1 || prompt > count) {
        return failed("the prompt is longer than the tokens");
    }

    ggml_backend_load_all();
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) {
        return failed("the model cannot be loaded");
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = count;
    params.n_batch         = prompt;
    params.n_ubatch        = prompt;
    params.n_threads       = 1;
    params.n_threads_batch = 1;
    llama_context * context = llama_init_from_model(model, params);
    if (context == nullptr) {
        return failed("no context");
    }
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));

    llama_batch batch = llama_batch_init(prompt, 0, 1);
    for (int done = 0; done < count; done += batch.n_tokens) {
        batch.n_tokens = done == 0 ? prompt : 1;
        for (int i = 0; i < batch.n_tokens; i++) {
            batch.token[i]     = tokens[done + i];
            batch.pos[i]       = done + i;
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i]    = 1;
        }
        if (llama_decode(context, batch) != 0) {
            return failed("the tokens cannot be read");
        }
        for (int i = 0; i < batch.n_tokens; i++) {
            if (fwrite(llama_get_logits_ith(context, i), sizeof(float), vocabulary, stdout) != (size_t) vocabulary) {
                return failed("the logits cannot be written");
            }
        }
    }
    return fflush(stdout) == 0 ? 0 : failed("the logits cannot be written");
}
