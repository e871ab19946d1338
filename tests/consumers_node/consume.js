// Opens an artefact as a page or a server in JavaScript does: a job in JSON on the standard input, its answers on the output.
import fs from 'node:fs';

const WAYS = { classify, embed, write, run };
const job = JSON.parse(fs.readFileSync(0, 'utf8'));
process.stdout.write(JSON.stringify(await WAYS[job.way](job)));

/** transformers.js, which looks for models in one folder alone. */
async function library(folder) {
  const transformers = await import('@huggingface/transformers');
  Object.assign(transformers.env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: folder });
  return transformers;
}

/** Scores of every label, a list for each text. */
async function classify({ folder, name, dtype, texts }) {
  const { pipeline } = await library(folder);
  const classifier = await pipeline('text-classification', name, { dtype });
  return Promise.all(texts.map((text) => classifier(text, { top_k: null })));
}

/** A vector for each text. */
async function embed({ folder, name, dtype, texts, options }) {
  const { pipeline } = await library(folder);
  const embedder = await pipeline('feature-extraction', name, { dtype });
  return (await embedder(texts, options)).tolist();
}

/** The tokens that an encoder-decoder writes for tokens. */
async function write({ folder, name, dtype, ids, options }) {
  const { AutoModelForSeq2SeqLM, Tensor } = await library(folder);
  const model = await AutoModelForSeq2SeqLM.from_pretrained(name, { dtype });
  const tensor = (values) => new Tensor('int64', BigInt64Array.from(values.flat().map(BigInt)), [values.length, values[0].length]);
  const mask = ids.map((row) => row.map(() => 1));
  const written = await model.generate({ inputs: tensor(ids), attention_mask: tensor(mask), ...options });
  return written.tolist().map((row) => row.map(Number));
}

/** The first output of a graph in onnxruntime-web, which is WebAssembly. */
async function run({ file, ids }) {
  const ort = await import('onnxruntime-web');
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(file)));
  const tensor = (values) => new ort.Tensor('int64', BigInt64Array.from(values.flat().map(BigInt)), [values.length, values[0].length]);
  const all = { input_ids: ids, attention_mask: ids.map((row) => row.map(() => 1)), token_type_ids: ids.map((row) => row.map(() => 0)) };
  const feeds = Object.fromEntries(session.inputNames.map((name) => [name, tensor(all[name])]));
  const output = (await session.run(feeds))[session.outputNames[0]];
  return Array.from(output.data);
}
