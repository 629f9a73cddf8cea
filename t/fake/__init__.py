"""The fake provider: what speaks to the gateway in every test.

    model       the values passed between the parts: Request, Ask, Answer, Plan, Dialect
    http1       bytes in, requests out; a plan in, bytes out
    behaviours  the registry of behaviours, and how one request becomes a plan
    faults      behaviours: what models say, and how their answers fail to arrive
    tasks       behaviours of models that call tools, write JSON, or make embeddings
    contents    what is said there
    errors      error bodies as real providers and servers send them
    openai      a dialect: one file, one table of functions; with openai_request
    anthropic   a dialect; with anthropic_request
    azure       a dialect
    gemini      a dialect; with gemini_request
    ollama      a dialect
    scripts     what a test has ordered for the next requests
    journal     what was asked, and how it ended
    server      sockets, connections, and the playing of plans
    control     the endpoints by which a test steers all this

To add a dialect, write one file that ends in a `Dialect(...)` and name it in `server.DIALECTS`.
"""
