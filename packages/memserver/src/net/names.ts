// By what the memory server's process and whoever starts it find each other.

/** The control socket, in the run folder. */
export const MEMORY_SERVER_SOCKET = 'memserver.sock';
/** What the process prints when it serves and its control socket listens. */
export const LISTENING_LINE = 'listening';
