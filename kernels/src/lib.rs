//! What is hot on a CPU: products with quantized and dense matrices, attention over paged keys and values, norms, rotary embedding,
//! activations, and the team of threads that computes them. Plain memory in, plain memory out; no tensors, no models.
